"""Say what to write today for the Trainer flags of older versions."""

from __future__ import annotations

__all__ = ["ADVICE", "advice"]

_BAR = "Write callbacks=[RichProgressBar(...)] or enable_progress_bar=False."
_MIXED = 'Write precision="16-mixed" or precision="bf16-mixed".'
_CHECKPOINT = "Write enable_checkpointing=True or False, or callbacks=[ModelCheckpoint(...)]."
_LR = "Set the learning rate where configure_optimizers reads it; no flag searches for it."
_DATA_LIMIT = "Write limit_{0}_batches={1}."
_GONE = "Leave it out."

ADVICE: dict[str, str] = {
    "amp_backend": _MIXED,
    "amp_level": _MIXED,
    "amp_type": _MIXED,
    "auto_lr_find": _LR,
    "auto_scale_batch_size": "Set the batch size where the DataLoader is made; no flag searches for it.",
    "auto_select_gpus": 'Write accelerator="gpu", devices=N.',
    "automatic_optimization": "Set self.automatic_optimization = False in the LightningModule.",
    "callback": "Write callbacks=[...].",
    "check_val_every_n_epochs": "Write check_val_every_n_epoch=N.",
    "checkpoint_callback": _CHECKPOINT,
    "ckpt_path": 'Give it to the method: trainer.fit(model, ckpt_path="...").',
    "default_save_path": 'Write default_root_dir="...".',
    "device": 'Write accelerator="cpu" or another, and devices=N.',
    "distributed_backend": 'Write strategy="ddp" or another.',
    "early_stop_callback": 'Write callbacks=[EarlyStopping(monitor="val_loss")].',
    "enable_pl_optimizer": "Leave it out; self.optimizers(use_pl_optimizer=False) gives the plain optimizers.",
    "epochs": "Write max_epochs=N.",
    "flush_logs_every_n_steps": "Write logger=CSVLogger(..., flush_logs_every_n_steps=N).",
    "fp16": _MIXED,
    "gpu_id": 'Write accelerator="gpu", devices=[index].',
    "gpus": 'Write accelerator="gpu", devices=N.',
    "gradient_clip": "Write gradient_clip_val=x.",
    "hpus": 'Write accelerator="hpu", devices=N, with a package that brings that accelerator.',
    "ipus": 'Write accelerator="ipu", devices=N, with a package that brings that accelerator.',
    "log_gpu_memory": "Leave it out; log it from a callback.",
    "log_save_interval": "Write log_every_n_steps=N.",
    "loggers": "Write logger=[...].",
    "max_nb_epochs": "Write max_epochs=N.",
    "min_nb_epochs": "Write min_epochs=N.",
    "model_registry": "Leave it out; give a path to trainer.fit(model, ckpt_path=...).",
    "move_metrics_to_cpu": "Leave it out; epoch metrics are kept as plain numbers.",
    "multiple_trainloader_mode": 'Give fit a CombinedLoader(loaders, mode="...").',
    "n_gpus": 'Write accelerator="gpu", devices=N.',
    "nb_gpu_nodes": "Write num_nodes=N.",
    "nb_sanity_val_steps": "Write num_sanity_val_steps=N.",
    "num_epochs": "Write max_epochs=N.",
    "num_gpu_nodes": "Write num_nodes=N.",
    "num_gpus": 'Write accelerator="gpu", devices=N.',
    "num_processes": 'Write accelerator="cpu", devices=N.',
    "overfit_pct": "Write overfit_batches=x.",
    "prepare_data_per_node": "Set prepare_data_per_node on the data module or the module.",
    "print_nan_grads": "Write detect_anomaly=True.",
    "process_position": _BAR,
    "progress_bar_refresh_rate": _BAR,
    "reload_dataloaders_every_epoch": "Write reload_dataloaders_every_n_epochs=1.",
    "replace_sampler_ddp": "Write use_distributed_sampler=True or False.",
    "resume_from_checkpoint": 'Give it to the method: trainer.fit(model, ckpt_path="...").',
    "row_log_interval": "Write log_every_n_steps=N.",
    "seed": "Call lt_core.seed_everything(N) before the model is made.",
    "show_progress_bar": "Write enable_progress_bar=True or False.",
    "steps": "Write max_steps=N.",
    "stochastic_weight_avg": "Leave it out; average the weights in a callback.",
    "suggest_integrations": _GONE,
    "terminate_on_nan": "Write detect_anomaly=True.",
    "test_percent_check": _DATA_LIMIT.format("test", "x"),
    "tpu_cores": 'Write accelerator="tpu", devices=N.',
    "track_grad_norm": "Leave it out; log the norm in on_before_optimizer_step.",
    "train_percent_check": _DATA_LIMIT.format("train", "x"),
    "truncated_bptt_steps": "Leave it out; split the batch in training_step with manual optimization.",
    "use_amp": _MIXED,
    "val_percent_check": _DATA_LIMIT.format("val", "x"),
    "verbose": "Write enable_progress_bar and enable_model_summary, each True or False.",
    "weights_save_path": 'Write default_root_dir="..." or callbacks=[ModelCheckpoint(dirpath="...")].',
    "weights_summary": "Write enable_model_summary=True or False, or callbacks=[ModelSummary(max_depth=N)].",
}


def advice(name: str) -> str:
    """Return what to write today for an old flag, or an empty string if it is none."""
    return ADVICE.get(name, "")
