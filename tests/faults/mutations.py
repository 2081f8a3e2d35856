"""Break a copy of the code on purpose, one fault at a time, and show which test catches each fault.

Run it with the project's Python: `python tests/faults/mutations.py`. Its exit status is 1 if a fault is not caught.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from helpers.snakemake_copy import ROOT, copy_tree


class Mutation(NamedTuple):
    """A fault: in one module of the package, `old` (found exactly once) is replaced by `new`; `tests` must catch it."""

    fault: str
    module: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    Mutation(
        "flip the sign of the PGD step",
        "attacks/pgd",
        "point = (point + step * gradient.sign())",
        "point = (point - step * gradient.sign())",
        "tests/attacks/test_pgd.py",
    ),
    Mutation(
        "omit the projection of PGD onto its ball",
        "attacks/pgd",
        "point = (point + step * gradient.sign()).clamp(low, high)",
        "point = (point + step * gradient.sign()).clamp(0, 1)",
        "tests/attacks/test_pgd.py",
    ),
    Mutation(
        "omit the projection onto the bound",
        "training/epoch",
        'norms = None if bound is None else project(state.layers, bound, settings["clip_rounds"])',
        "norms = None if bound is None else [bound] * len(state.layers)",
        "tests/training/test_loop.py",
    ),
    Mutation(
        "clip singular values without rescaling to the bound",
        "spectra/projection",
        "while exact and norm > bound:",
        "while False:",
        "tests/spectra/test_projection.py",
    ),
    Mutation(
        "bound the circular operator instead of the one that the network applies",
        "spectra/projection",
        "enclosing_grid(layer) if exact else _size(layer)",
        "_size(layer)",
        "tests/spectra/test_applied_bound.py",
    ),
    Mutation(
        "pair networks of different seeds in a change of strength",
        "claims/contrasts",
        "pairs = [(seed, seed) for seed in common]",
        "pairs = list(zip(common, common[::-1], strict=True))",
        "tests/claims/test_uncertainty.py",
    ),
    Mutation(
        "leave the images out of the uncertainty of a claim",
        "claims/uncertainty",
        "return Effect(mean, seeds, tuple(images), n_seeds)",
        "return Effect(mean, seeds, (), n_seeds)",
        "tests/claims/test_uncertainty.py",
    ),
    Mutation(
        "leave the seeds out of the uncertainty of a claim",
        "claims/uncertainty",
        "margin = math.hypot(_margin(self.seeds, p), _margin(self.images, p))",
        "margin = math.hypot(_margin(self.images, p), 0.0)",
        "tests/claims/test_uncertainty.py",
    ),
    Mutation(
        "let one seed decide that a claim holds",
        "claims/verdicts",
        "yes, no, open_ = SEVERAL_SEEDS if effect.n_seeds > 1 else ONE_SEED",
        "yes, no, open_ = SEVERAL_SEEDS",
        "tests/claims/test_uncertainty.py",
    ),
    Mutation(
        "check a bound against the circular operator instead of the one that the network applies",
        "checks/run_checks",
        'applied = padding.sort_values("layer")["max_zero"].to_numpy()',
        'applied = padding.sort_values("layer")["max_circular"].to_numpy()',
        "tests/checks/test_checks.py",
    ),
    Mutation(
        "count frozen columns as live",
        "spectra/live",
        "return kernel[~dead_rows(kernel)][:, ~frozen]",
        "return kernel[~dead_rows(kernel)]",
        "tests/spectra/test_live.py",
    ),
    Mutation(
        "swap train and test in the metrics",
        "measures/metrics",
        'train, test = means.loc["train"], means.loc["test"]',
        'test, train = means.loc["train"], means.loc["test"]',
        "tests/measures/test_metrics.py",
    ),
    Mutation(
        "swap train and test in the data",
        "data/dataset",
        'name == "train"',
        'name != "train"',
        "tests/data/test_data.py",
    ),
    Mutation(
        "ignore the multiplicities of singular values",
        "spectra/singular_values",
        "variance = float(((sigma - mean) ** 2 * multiplicity).sum() / n)",
        "variance = float(((sigma - mean) ** 2).sum() / len(sigma))",
        "tests/spectra/test_singular_values.py",
    ),
    Mutation(
        "fold frequencies with the wrong stride",
        "spectra/fourier",
        "torch.arange(stride, device=frequency.device) * (length // stride)",
        "torch.arange(stride, device=frequency.device) * stride",
        "tests/spectra/test_singular_values.py",
    ),
    Mutation(
        "let PGD continue with a gradient that is not finite",
        "attacks/pgd",
        "    refuse_nonfinite_gradient(total)\n    return adversarial",
        "    return adversarial",
        "tests/measures/test_gradient_masking.py",
    ),
    Mutation(
        "let APGD continue with a gradient that is not finite",
        "attacks/apgd",
        "    refuse_nonfinite_gradient(gradient)\n",
        "",
        "tests/measures/test_gradient_masking.py",
    ),
    Mutation(
        "count outputs that are not finite as misclassified",
        "attacks/evaluation",
        "if bad := int((~logits.isfinite()).any(1).sum()):",
        "if bad := 0:",
        "tests/measures/test_gradient_masking.py",
    ),
    Mutation(
        "measure a checkpoint with weights that are not finite",
        "networks/checkpoint",
        "    if bad:\n",
        "    if False:\n",
        "tests/measures/test_gradient_masking.py",
    ),
    Mutation(
        "let every check for gradient masking pass",
        "measures/gradient_masking",
        '"passed": value <= limit',
        '"passed": True',
        "tests/measures/test_gradient_masking.py",
    ),
    Mutation(
        "omit failed gradient masking checks from tables",
        "tables/study_tables",
        'frame["masking_failed"] = _count_failed_checks(frame, runs)',
        'frame["masking_failed"] = 0',
        "tests/measures/test_gradient_masking.py",
    ),
    Mutation(
        "draw radii of normalised space as if they were in pixels",
        "figures/strength_axis",
        'if run["space"] == "pixel":',
        "if True:",
        "tests/figures/test_paper_figures.py",
    ),
    Mutation(
        "test on the first digits instead of the last ones",
        "data/digits",
        "train, test = slice(None, -N_TEST), slice(-N_TEST, None)",
        "train, test = slice(N_TEST, None), slice(None, N_TEST)",
        "tests/data/test_data.py",
    ),
    Mutation(
        "leave batch normalisation out of Theorem 3.1",
        "measures/theorem",
        "*smallest, *(scales or [])]",
        "*smallest]",
        "tests/measures/test_theorem.py",
    ),
    Mutation(
        "leave seeds without a value out of means, but count them",
        "tables/study_tables",
        "groups[name].mean(skipna=False)",
        "groups[name].mean()",
        "tests/tables/test_study_tables.py",
    ),
    Mutation(
        "omit failed gradient masking checks from figures",
        "figures/paper_figures",
        "for run in runs if failed_masking_checks(run)]",
        "for run in runs if False]",
        "tests/measures/test_gradient_masking.py",
    ),
    Mutation(
        "omit failed gradient masking checks from the report",
        "report/wording",
        '        if row["masked"]:',
        "        if False:",
        "tests/report/test_report.py",
    ),
    Mutation(
        "load a checkpoint with a flipped bit",
        "networks/checkpoint",
        "if (bad := file.testzip()) is not None:",
        "if (bad := None) is not None:",
        "tests/faults/test_faults.py",
    ),
    Mutation(
        "do not name the file that a full disk cannot hold",
        "tables/files",
        "raise cannot_write(path, error) from error",
        "raise",
        "tests/faults/test_faults.py",
    ),
    Mutation(
        "write an incomplete file under its final name",
        "tables/files",
        '    temporary = path.with_name(f".{path.name}.tmp")\n    try:\n        path.parent',
        "    temporary = path\n    try:\n        path.parent",
        "tests/faults/test_faults.py",
    ),
    Mutation(
        "resume from a state of another version",
        "training/resume",
        "        if saved != self.identity:",
        "        if False:",
        "tests/faults/test_faults.py",
    ),
    Mutation(
        "use prepared data with a changed byte",
        "data/dataset",
        'if _fingerprint(folder) != meta["sha256"]:',
        "if False:",
        "tests/faults/test_data_fuzz.py",
    ),
    Mutation(
        "trust any content of meta.json",
        "data/dataset",
        "    if wrong:\n        raise _unusable",
        "    if False:\n        raise _unusable",
        "tests/faults/test_data_fuzz.py",
    ),
    Mutation(
        "use a meta.json that was edited",
        "data/dataset",
        'if actual_hash != meta["meta_sha256"]:',
        "if False:",
        "tests/data/test_data.py",
    ),
    Mutation(
        "read an array that is stored in Fortran order",
        "data/dataset",
        "if fortran:",
        "if False:",
        "tests/data/test_data.py",
    ),
    Mutation(
        "build arrays of any type from a pickle",
        "data/cifar",
        'if type(dtype) is not _DtypeStub or dtype.name != "u1":',
        "if False:",
        "tests/faults/test_data_fuzz.py",
    ),
    Mutation(
        "unpack an archive of any size",
        "data/cifar",
        "if self.tell() > MAX_UNPACKED:",
        "if False:",
        "tests/data/test_data.py",
    ),
    Mutation(
        "read a Parquet file with any number of rows",
        "data/parquet_folder",
        "if rows > MAX_ROWS:",
        "if False:",
        "tests/faults/test_data_fuzz.py",
    ),
    Mutation(
        "read the same number of rows at a time, whatever their size",
        "data/parquet_folder",
        "return min(BATCH_ROWS, max(1, BATCH_BYTES // max(1, largest_page(path, metadata, column))))",
        "return BATCH_ROWS",
        "tests/faults/test_data_fuzz.py",
    ),
    Mutation(
        "convert weights of another type silently",
        "networks/checkpoint",
        "if name in weights and isinstance(own, Tensor) and weights[name].dtype != own.dtype:",
        "if False:",
        "tests/networks/test_networks.py",
    ),
    Mutation(
        "accept weights with another normalisation than the metadata",
        "networks/checkpoint",
        'if not torch.equal(weights[f"normalise.{name}"], value):',
        "if False:",
        "tests/networks/test_networks.py",
    ),
    Mutation(
        "measure a checkpoint with metadata of the wrong type",
        "networks/checkpoint",
        "if type(meta[key]) is not kind:",
        "if False:",
        "tests/networks/test_networks.py",
    ),
    Mutation(
        "accept a figure that is listed twice",
        "runs/config",
        "if repeated := [name for name in known if names.count(name) > 1]:",
        "if repeated := []:",
        "tests/runs/test_config.py",
    ),
    Mutation(
        "show the default architecture of a data set only",
        "runs/catalogue",
        'run["spectral_norm"] is None]',
        'run["spectral_norm"] is None and run["arch"] == run["default_arch"]]',
        "tests/runs/test_config.py",
    ),
    Mutation(
        "show all architectures where a figure names one",
        "runs/catalogue",
        "not places(run).isdisjoint(only)",
        'run["dataset"] in {place.partition("/")[0] for place in only}',
        "tests/runs/test_config.py",
    ),
    Mutation(
        "compare an architecture with no other",
        "runs/catalogue",
        "for dataset, _ in pairs) > 1",
        "for dataset, _ in pairs) > 0",
        "tests/runs/test_config.py",
    ),
    Mutation(
        "accept B.2 without networks of the strengths to compare",
        "runs/catalogue",
        "if item.pairs and not low & high:",
        "if False:",
        "tests/runs/test_config.py",
    ),
    Mutation(
        "name the figures that a study cannot make, but not the tables",
        "runs/config",
        "for part in _PARTS if (text := _describe_unmade",
        "for part in list(_PARTS)[:1] if (text := _describe_unmade",
        "tests/runs/test_config.py",
    ),
    Mutation(
        "accept a figure with runs for only one of the architectures that it names",
        "runs/config",
        "select_runs(name, listed, place and [place])",
        "select_runs(name, listed, only)",
        "tests/runs/test_config.py",
    ),
    Mutation(
        "accept a figure that names networks of which the study has no run",
        "runs/config",
        "if foreign := sorted(set(only or ()) - available.keys()):",
        "if foreign := []:",
        "tests/runs/test_config.py",
    ),
    Mutation(
        "compare architectures on different scales",
        "figures/paper_figures",
        '_gap_sections("data set")',
        '_gap_sections("none")',
        "tests/figures/test_paper_figures.py",
    ),
    Mutation(
        "let long names of architectures overlap",
        "figures/grid",
        "{3: 30, 2: 45}",
        "{3: 99, 2: 99}",
        "tests/figures/test_paper_figures.py",
    ),
    Mutation(
        "let labels of histograms leave the figure",
        "figures/paper_figures",
        "height=2.5, across=2)",
        "height=2.5, across=3)",
        "tests/figures/test_paper_figures.py",
    ),
    Mutation(
        "call a user's network smaller than the paper's",
        "report/wording",
        "        if factory\n        else f",
        "        if False\n        else f",
        "tests/report/test_report.py",
    ),
    Mutation(
        "accept a bound on layers outside the allowed range",
        "runs/variant",
        "if variant.bound is not None and not MIN_BOUND <= variant.bound <= MAX_BOUND:",
        "if False:",
        "tests/runs/test_variant.py",
    ),
    Mutation(
        "give two bounds the same name",
        "runs/variant",
        'f"{Decimal(repr(float(bound))):f}"',
        'f"{bound:.12f}"',
        "tests/runs/test_variant.py",
    ),
    Mutation(
        "let a damaged state raise errors that do not name the file",
        "training/resume",
        "        except Exception as error:",
        "        except OSError as error:",
        "tests/training/test_loop.py",
    ),
    Mutation(
        "allow any class in a pickle",
        "data/cifar",
        "if (module, name) not in PICKLE_GLOBALS:",
        "if False:",
        "tests/faults/test_data_fuzz.py",
    ),
    Mutation(
        "let a damaged archive raise errors that do not name the file",
        "data/cifar",
        '    except Exception as error:  # a damaged header may raise anything\n        raise DataError(f"{path}: not',
        '    except tarfile.TarError as error:\n        raise DataError(f"{path}: not',
        "tests/faults/test_data_fuzz.py",
    ),
    Mutation(
        "decode images before checking their size",
        "data/parquet_folder",
        "if size == shape else None",
        "",
        "tests/faults/test_data_fuzz.py",
    ),
    Mutation(
        "accept images of any size",
        "data/parquet_folder",
        "if math.prod(shape) > MAX_PIXELS:",
        "if False:",
        "tests/faults/test_data_fuzz.py",
    ),
    Mutation(
        "read files of any size from a zip",
        "data/tiny_imagenet",
        "file.read(MAX_FILE + 1)",
        "file.read()",
        "tests/data/test_limits.py",
    ),
    Mutation(
        "accept a config with errors",
        "runs/config",
        "    if errors:\n        raise ConfigError",
        "    if False:\n        raise ConfigError",
        "tests/faults/test_config_fuzz.py",
    ),
    Mutation(
        "accept a key that is given twice",
        "runs/config",
        "if key.value in seen:",
        "if False:",
        "tests/runs/test_config.py",
    ),
    Mutation(
        "let every check of a run's tables pass",
        "checks/invariants",
        '    if bad := [row for row in rows if not row["passed"]]:',
        "    if bad := []:",
        "tests/checks/test_checks.py",
    ),
    Mutation(
        "do not check that robust accuracy is at most clean accuracy",
        "checks/run_checks",
        '(test["n_robust"] <= test["n_correct"])',
        '(test["n_robust"] == test["n_robust"])',
        "tests/checks/test_checks.py",
    ),
    Mutation(
        "count no differing cells in the audit of a study",
        "checks/study_audit",
        "    return sum(int((~_equal_cells(one[key], other[key])).sum()) for key in one.columns)",
        "    return 0",
        "tests/checks/test_checks.py",
    ),
    Mutation(
        "call any function that a checkpoint names",
        "networks/user_defined",
        "if not _makes_networks(target):",
        "if False:",
        "tests/networks/test_networks.py",
    ),
    Mutation(
        "take an index that pandas named for the labels",
        "data/columns",
        "named = {name for name in described if isinstance(name, str)}",
        "named = set[str]()",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "take an index without pandas' metadata for the labels",
        "data/columns",
        "if _UNNAMED_INDEX.fullmatch(name)}",
        "if False}",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "take another column where label has text",
        "data/columns",
        "[name for name in named if name in whole] or named,",
        "[name for name in named if name in whole] or remaining,",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "take no index even where label_column names it",
        "data/columns",
        "if len(candidates) != 1 or candidates[0] not in whole:",
        "if len(candidates) != 1 or candidates[0] not in remaining:",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "ignore image_column",
        "data/columns",
        'if (chosen := settings.get("image_column")) is not None:',
        'if (chosen := settings.get("images")) is not None:',
        "tests/data/test_columns.py",
    ),
    Mutation(
        "do not look up a misspelt column",
        "data/columns",
        "if chosen not in schema.names:",
        "if False:",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "read files of other columns than the first",
        "data/columns",
        "if (found.images.path, found.labels.path) != (first.images.path, first.labels.path):",
        "if False:",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "prefer no structs to other binary columns",
        "data/columns",
        "candidates, reason = structs or binary,",
        "candidates, reason = structs + binary,",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "accept row numbers as labels",
        "data/classes",
        "    if columns.labels.guessed:",
        "    if False:",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "warn of many classes in no column that has a name",
        "data/classes",
        '    log.warning("%s: %s; if these are not',
        '    log.info("%s: %s; if these are not',
        "tests/data/test_columns.py",
    ),
    Mutation(
        "count more classes than images before they are too many",
        "data/classes",
        "2 * source.classes <= len(source.train_labels)",
        "source.classes <= len(source.train_labels)",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "accept a class that only the test split has",
        "data/classes",
        "if unknown := sorted(_count(source.test_labels).keys() - counts.keys()):",
        "if unknown := []:",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "say nothing of a class without images",
        "data/classes",
        "if missing := source.classes - len(counts):",
        "if missing := 0:",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "say nothing of a class with one training image",
        "data/classes",
        "if counts[label] == 1]:",
        "if counts[label] == 0]:",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "say nothing of a class that a subset loses",
        "data/classes",
        "if lost := sorted(_count(source.train_labels).keys() - present):",
        "if lost := []:",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "do not log which columns were taken",
        "data/selection",
        'log.info("%s: the %s come from',
        'log.debug("%s: the %s come from',
        "tests/data/test_columns.py",
    ),
    Mutation(
        "count the images of each class in the source instead of the subset",
        "data/selection",
        "describe_classes(chosen, source))",
        "describe_classes(source.train_labels, source))",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "print nothing of what is logged",
        "workflow/job",
        "handlers=[handler, _terminal()] if shown else [handler]",
        "handlers=[handler]",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "print the traceback of an error",
        "workflow/job",
        '    terminal.addFilter(logging.Filter("robreg"))\n',
        "",
        "tests/data/test_columns.py",
    ),
    Mutation(
        "believe that a network is the one that was trained",
        "networks/checkpoint",
        "elif not difference <= TOLERANCE:",
        "elif False:",
        "tests/networks/test_probe.py",
    ),
    Mutation(
        "compare logits with a tolerance of a tenth",
        "networks/probe",
        "TOLERANCE = 1e-4",
        "TOLERANCE = 1e-1",
        "tests/networks/test_probe.py",
    ),
    Mutation(
        "record the logits of another mode",
        "networks/probe",
        "model.eval()(to_float(images))",
        "model.train()(to_float(images))",
        "tests/networks/test_probe.py",
    ),
    Mutation(
        "train a network that keeps state outside of its weights",
        "training/loop",
        "    if not difference <= TOLERANCE:",
        "    if False:",
        "tests/training/test_kept.py",
    ),
    Mutation(
        "train with code that was edited after the job was planned",
        "training/loop",
        'if factory and (changes := describe_changes(factory["callable"], factory["code"])):',
        'if False and (changes := describe_changes(factory["callable"], factory["code"])):',
        "tests/training/test_kept.py",
    ),
    Mutation(
        "leave the code of a user's architecture out of its settings",
        "runs/settings",
        '"arguments": dict(own.get("arguments", {})), "code": code}',
        '"arguments": dict(own.get("arguments", {})), "code": {}}',
        "tests/runs/test_source_code.py",
    ),
    Mutation(
        "leave the modules that a user's architecture imports out of its code",
        "runs/source_code",
        "to_visit += _imported(",
        "_imported(",
        "tests/runs/test_source_code.py",
    ),
    Mutation(
        "leave a user's code out of the hash of the code",
        "tables/provenance",
        'own = callable_code(factory["callable"]) if factory else {}',
        "own = {}",
        "tests/training/test_kept.py",
    ),
    Mutation(
        "let comments count as code",
        "runs/source_code",
        "repr(_essence(ast.parse(source))).encode()",
        "source",
        "tests/runs/test_source_code.py",
    ),
    Mutation(
        "use a kept network of other code again",
        "training/kept",
        '_key(hash_settings(settings), data_sha256, code_hash(settings["factory"]))',
        '_key(hash_settings(settings), data_sha256, "")',
        "tests/training/test_kept.py",
    ),
    Mutation(
        "let a kept network count as old, so that its measures are not repeated",
        "training/kept",
        "        os.utime(run / name)",
        "        pass",
        "tests/training/test_kept.py",
    ),
    Mutation(
        "use a damaged kept network again",
        "training/loop",
        '        load_network(kept / "checkpoint.pt")',
        '        str(kept / "checkpoint.pt")',
        "tests/training/test_kept.py",
    ),
    Mutation(
        "delete kept networks that are in use",
        "training/kept",
        "delete = given.delete and not one.used",
        "delete = given.delete",
        "tests/training/test_kept.py",
    ),
    Mutation(
        "delete a network that is not kept before another one is trained",
        "workflow/driver",
        "            kept.keep(Path(job.output[0]).parent)",
        "            str(Path(job.output[0]).parent)",
        "tests/workflow/test_kept_networks.py",
    ),
    Mutation(
        "use a kept network again although training is forced",
        "workflow/plan",
        "if workflow.dag.reason(job).forced and folder is not None:",
        "if False and folder is not None:",
        "tests/workflow/test_kept_networks.py",
    ),
    Mutation(
        "measure on data that are described otherwise than in the checkpoint",
        "measures/open_run",
        "if (list(found) if isinstance(found, tuple) else found) != value:",
        "if False:",
        "tests/measures/test_open_run.py",
    ),
    Mutation(
        "measure on the same bytes in another shape",
        "measures/open_run",
        "    _refuse_other_images(checkpoint, prepared, data)\n",
        "",
        "tests/measures/test_open_run.py",
    ),
    Mutation(
        "train on labels that are all the same",
        "data/dataset",
        "if low == high and",
        "if False and",
        "tests/data/test_data.py",
    ),
    Mutation(
        "train on data prepared with other settings",
        "data/dataset",
        "if meta.get(key) != value:",
        "if False:",
        "tests/data/test_data.py",
    ),
    Mutation(
        "prepare a subset of one class",
        "data/classes",
        "if len(present) == 1:",
        "if False:",
        "tests/data/test_data.py",
    ),
    Mutation(
        "read a Parquet page of any size",
        "data/parquet_pages",
        "if size > MAX_PAGE:",
        "if False:",
        "tests/data/test_limits.py",
    ),
    Mutation(
        "read a Parquet dictionary of any length",
        "data/parquet_pages",
        "if dictionary.get(_COUNT, 0) > MAX_DISTINCT:",
        "if False:",
        "tests/data/test_limits.py",
    ),
    Mutation(
        "read Parquet values in any encoding",
        "data/parquet_pages",
        "if unknown := kinds - {*ENCODINGS}:",
        "if unknown := kinds - kinds:",
        "tests/data/test_limits.py",
    ),
    Mutation(
        "take the second of two sizes of a page",
        "data/parquet_pages",
        "if number in fields:",
        "if False:",
        "tests/data/test_limits.py",
    ),
    Mutation(
        "trust a zip's sizes where its compression keeps to none",
        "data/tiny_imagenet",
        "if info.compress_type not in METHODS:",
        "if False:",
        "tests/data/test_limits.py",
    ),
    Mutation(
        "accept a file of any size in a zip",
        "data/tiny_imagenet",
        "if len(content) > MAX_FILE:",
        "if False:",
        "tests/data/test_tiny_imagenet.py",
    ),
    Mutation(
        "read a device instead of a file of a folder",
        "data/tiny_imagenet",
        "if path.exists() and not path.is_file():",
        "if False:",
        "tests/data/test_limits.py",
    ),
    Mutation(
        "read a device instead of a Parquet file",
        "data/parquet_folder",
        "if not path.is_file():",
        "if False:",
        "tests/data/test_data.py",
    ),
    Mutation(
        "let nested metadata of a Parquet file end the job",
        "data/parquet_folder",
        "TypeError, ValueError, RecursionError):",
        "TypeError, ValueError):",
        "tests/data/test_limits.py",
    ),
    Mutation(
        "call a file damaged that needs too much memory",
        "data/parquet_folder",
        "    except (DataError, MemoryError):",
        "    except DataError:",
        "tests/data/test_limits.py",
    ),
    Mutation(
        "use any amount of memory",
        "workflow/job",
        "resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))",
        "pass",
        "tests/data/test_limits.py",
    ),
    Mutation(
        "download more than the archive has",
        "data/download",
        "> remote.size:\n",
        "> 4 * remote.size:\n",
        "tests/data/test_download.py",
    ),
    Mutation(
        "wait for a stalled server",
        "data/download",
        "timeout=STALLED",
        "timeout=None",
        "tests/data/test_download.py",
    ),
    Mutation(
        "wait for a server that sends a byte now and then",
        "data/download",
        "elif time.monotonic() > due:",
        "elif False:",
        "tests/data/test_download.py",
    ),
    Mutation(
        "begin a download again where it could go on",
        "data/download",
        '{"Range": f"bytes={begun}-"} if begun else {}',
        "{}",
        "tests/data/test_download.py",
    ),
    Mutation(
        "append another part of a download than was asked for",
        "data/download",
        'elif not response.headers.get("Content-Range", "").startswith(f"bytes {begun}-"):',
        "elif False:",
        "tests/data/test_download.py",
    ),
    Mutation(
        "let a source lead out of data_root",
        "data/selection",
        'elif ".." in path.relative_to(data_root).parts:',
        "elif False:",
        "tests/data/test_data.py",
    ),
    Mutation(
        "say nothing of a source outside data_root",
        "data/selection",
        '        log.info("%s: %s is an absolute path',
        '        log.debug("%s: %s is an absolute path',
        "tests/data/test_data.py",
    ),
    Mutation(
        "let text of a file command the terminal",
        "workflow/job",
        "printable(line) for line",
        "line for line",
        "tests/data/test_limits.py",
    ),
    Mutation(
        "let a file forge an entry of the log",
        "workflow/job",
        '"\\n    ".join(',
        '"\\n".join(',
        "tests/data/test_limits.py",
    ),
    Mutation(
        "let an error quote control characters",
        "data/errors",
        'printable(" ".join(line.strip() for line in said.splitlines()))',
        '" ".join(line.strip() for line in said.splitlines())',
        "tests/data/test_limits.py",
    ),
)


def apply(mutation: Mutation, root: Path) -> None:
    """Apply a fault to the tree at root; raise ValueError if the code to replace is not found exactly once."""
    path = root / f"src/robreg/{mutation.module}.py"
    text = path.read_text()
    if text.count(mutation.old) != 1:
        raise ValueError(
            f"{mutation.fault}: {path.name} has {mutation.old!r} {text.count(mutation.old)} times, not once"
        )
    path.write_text(text.replace(mutation.old, mutation.new))


def caught_by(mutation: Mutation | None, tests: str, root: Path) -> str | None:
    """Run tests in the tree at root after applying the mutation; return the first test that fails, or None."""
    if mutation is not None:
        apply(mutation, root)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", tests]
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) or (done.returncode and not found):
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return found[1] if found else None


def main() -> int:
    """Try every fault, print a line for each, and return the exit status."""
    unseen = 0
    for mutation in MUTATIONS:
        with tempfile.TemporaryDirectory() as folder:
            root = copy_tree(Path(folder) / "copy", tests=True)
            test = caught_by(mutation, mutation.tests, root)
        unseen += test is None
        print(f"{mutation.fault}: {f'caught by {test}' if test else 'NOT CAUGHT'}", flush=True)
    return int(unseen > 0)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
