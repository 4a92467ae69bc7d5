"""Define what to write today for the Trainer flags of older versions."""

from __future__ import annotations

__all__ = ["ADVICE"]

_BAR = "Write callbacks=[RichProgressBar(...)] or enable_progress_bar=False."
# The flags that each advice is for.
_FLAGS = {
    'Write precision="16-mixed" or precision="bf16-mixed".': "amp_backend amp_level amp_type fp16 use_amp",
    "Call Tuner(trainer).lr_find(model), as trainer.tune(model) does.": "auto_lr_find",
    "Call Tuner(trainer).scale_batch_size(model), as trainer.tune(model) does.": "auto_scale_batch_size",
    'Write accelerator="gpu", devices=N.': "auto_select_gpus gpus n_gpus num_gpus",
    "Set self.automatic_optimization = False in the LightningModule.": "automatic_optimization",
    "Write callbacks=[...].": "callback",
    "Write check_val_every_n_epoch=N.": "check_val_every_n_epochs",
    "Write enable_checkpointing=True or False, or callbacks=[ModelCheckpoint(...)].": "checkpoint_callback",
    'Give it to the method: trainer.fit(model, ckpt_path="...").': "ckpt_path resume_from_checkpoint",
    'Write default_root_dir="...".': "default_save_path",
    'Write accelerator="cpu" or another, and devices=N.': "device",
    'Write strategy="ddp" or another.': "distributed_backend",
    'Write callbacks=[EarlyStopping(monitor="val_loss")].': "early_stop_callback",
    "Leave it out; self.optimizers(use_pl_optimizer=False) gives the plain optimizers.": "enable_pl_optimizer",
    "Write max_epochs=N.": "epochs max_nb_epochs num_epochs",
    "Write logger=CSVLogger(..., flush_logs_every_n_steps=N).": "flush_logs_every_n_steps",
    'Write accelerator="gpu", devices=[index].': "gpu_id",
    "Write gradient_clip_val=x.": "gradient_clip",
    'Write accelerator="hpu", devices=N, with a package that brings that accelerator.': "hpus",
    'Write accelerator="ipu", devices=N, with a package that brings that accelerator.': "ipus",
    "Leave it out; log it from a callback.": "log_gpu_memory",
    "Write log_every_n_steps=N.": "add_row_log_interval log_save_interval row_log_interval",
    "Write logger=[...].": "loggers",
    "Write min_epochs=N.": "min_nb_epochs",
    "Give it to the method: trainer.fit(model, train_dataloaders, val_dataloaders).": (
        "model train_dataloader val_dataloaders"
    ),
    "Give it to the method: trainer.test(model, dataloaders).": "test_dataloaders",
    "Leave it out; give a path to trainer.fit(model, ckpt_path=...).": "model_registry",
    "Leave it out; epoch metrics are kept as plain numbers.": "move_metrics_to_cpu",
    'Give fit a CombinedLoader(loaders, mode="...").': "multiple_trainloader_mode",
    "Write num_nodes=N.": "nb_gpu_nodes num_gpu_nodes",
    "Write num_sanity_val_steps=N.": "nb_sanity_val_steps",
    'Write accelerator="cpu", devices=N.': "num_processes",
    "Write overfit_batches=x.": "overfit_pct",
    "Set prepare_data_per_node on the data module or the module.": "prepare_data_per_node",
    "Write detect_anomaly=True.": "print_nan_grads terminate_on_nan",
    _BAR: "process_position progress_bar_refresh_rate",
    "Write reload_dataloaders_every_n_epochs=1.": "reload_dataloaders_every_epoch",
    "Write use_distributed_sampler=True or False.": "replace_sampler_ddp replace_sampler_ddp_default",
    "Call lt_core.seed_everything(N) before the model is made.": "seed",
    "Write enable_progress_bar=True or False.": "show_progress_bar",
    "Write max_steps=N.": "steps",
    "Pass StochasticWeightAveraging(swa_lrs=...) as a callback.": "stochastic_weight_avg",
    "Leave it out.": "suggest_integrations replace_optimizer_ddp replace_lr_scheduler_ddp amp_batch_size_adjustment",
    "Leave it out; save_hyperparameters() of the module keeps its arguments.": "save_hparams",
    "Set MASTER_PORT in the environment.": "distributed_port",
    "Write limit_test_batches=x.": "test_percent_check",
    'Write accelerator="tpu", devices=N.': "tpu_cores",
    "Write callbacks=[GradNorm(norm_type=2)].": "track_grad_norm",
    "Write limit_train_batches=x.": "train_percent_check",
    "Leave it out; split the batch in training_step with manual optimization.": "truncated_bptt_steps",
    "Write limit_val_batches=x.": "val_percent_check",
    "Write enable_progress_bar and enable_model_summary, each True or False.": "verbose",
    'Write default_root_dir="..." or callbacks=[ModelCheckpoint(dirpath="...")].': "weights_save_path",
    "Write enable_model_summary=True or False, or callbacks=[ModelSummary(max_depth=N)].": "weights_summary",
}
ADVICE: dict[str, str] = {flag: text for text, flags in _FLAGS.items() for flag in flags.split()}
