"""Shared by tests; import as `from helpers import ranks` (pytest puts tests/ on the path).

Data: `images`, `colours` and `typicality` generate images; `archives` packs them as other programs do; `damage`,
`bad_samples` and `hostile` break data sets and files.

Batches and runs: `streams` and `plan_batches` give batches; `run_folders` writes run folders without training;
`small_runs` has the options of a run of seconds and compares runs; `pages` reads reports.

Processes: `typed` runs a command in this process, `ranks` in forked ones, `torchruns` and `two_hosts` under torchrun;
`gloo_ranks` runs functions in several ranks; `killed` and `killed_packing` die at a chosen point, and so do the
programs of `scored_loop` and `recorded_example`; `full_disk` limits file sizes; `servers` are file, S3 and faulty
servers, `hub` a model hub; `tracker_stores` reads what trackers stored.
"""
