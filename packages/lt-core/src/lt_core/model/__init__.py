"""What concerns the module itself: hyper-parameters, loading, export, summary."""
