"""What self.log was given."""
