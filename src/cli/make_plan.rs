//! The output of `quantier make --dry-run`.

use super::text::size;
use quantier::make::{DryRun, ShardPlan};
use std::path::Path;

/// The dry run as a table.
pub fn text(e: &DryRun) -> String {
    let mut lines = vec![
        format!(
            "{} tensors with {} matrices, {} candidate types: {} pairs to score",
            e.tensors, e.matrices, e.types, e.trials
        ),
        format!(
            "tokens: {}{} for calibration, {} of them for sensitivities, {} for the evaluation",
            if e.are_tokens_estimated { "about " } else { "" },
            e.calibration_tokens,
            e.scoring_tokens,
            e.evaluation_tokens
        ),
        String::new(),
        format!("{:<20}{:>16}{:>12}", "stage", "operations", "time"),
    ];
    for stage in &e.stages {
        let time = match (stage.done, stage.cost.is_outside) {
            (true, _) => "done".into(),
            (false, true) => format!("{} + ?", duration(stage.seconds)),
            (false, false) => duration(stage.seconds),
        };
        lines.push(format!(
            "{:<20}{:>16}{:>12}",
            stage.name,
            format!("{:.3e}", stage.flops),
            time
        ));
    }
    let total = e.stages.iter().map(|stage| stage.seconds).sum();
    lines.push(format!("{:<20}{:>16}{:>12}", "all", "", duration(total)));
    lines.push(format!(
        "(an estimate from short trials on this machine: {:.1} GFLOP/s in a product, and a row of every type)",
        e.flops_per_second / 1e9
    ));
    if e.stages
        .iter()
        .any(|stage| stage.cost.is_outside && !stage.done)
    {
        lines.push("?: the time of llama.cpp's programs, which they print once they run".into());
    }
    lines.push(String::new());
    for (budget, bytes) in &e.files {
        lines.push(match bytes {
            Some(bytes) => format!("{budget}: about {}", size(*bytes)),
            None => format!("{budget}: the size depends on the sensitivities"),
        });
    }
    lines.push(format!(
        "disk: {} for files, {} for the importance matrix, {} for Hessians, up to {} more in work/ during the run",
        size(e.files_bytes),
        size(e.imatrix_bytes),
        size(e.covariance_bytes),
        size(e.work_bytes)
    ));
    if e.projector_bytes > 0 {
        lines.push(format!(
            "disk for the projector: {}; --fit counts it",
            size(e.projector_bytes)
        ));
    }
    if e.base_bytes + e.logits_bytes > 0 {
        lines.push(format!(
            "disk for llama.cpp's programs, in work/: {} for the checkpoint as a GGUF, {} for log-probabilities",
            size(e.base_bytes),
            size(e.logits_bytes)
        ));
    }
    if e.temporary_bytes > 0 {
        lines.push(format!(
            "temporary file: {} beyond --max-memory",
            size(e.temporary_bytes)
        ));
    }
    lines.push(format!(
        "memory: about {}, beside the mapped model",
        size(e.memory_bytes)
    ));
    lines.join("\n")
}

/// A plan of shards as a table.
pub fn shards(plan: &ShardPlan, directory: &Path) -> String {
    let mut lines = vec![format!(
        "{:<16}{:>8}{:>8}{:>12}{:>14}{:>12}{:>12}  after",
        "stage", "units", "shards", "time", "longest shard", "memory", "parts"
    )];
    for stage in &plan.stages {
        let longest = stage.shards.iter().map(|shard| shard.seconds);
        let time = match stage.done {
            true => "done".into(),
            false => duration(stage.seconds),
        };
        lines.push(format!(
            "{:<16}{:>8}{:>8}{:>12}{:>14}{:>12}{:>12}  {}",
            stage.name,
            stage.units,
            stage.shards.len(),
            time,
            duration(longest.fold(0.0, f64::max)),
            size(stage.memory_bytes),
            size(stage.part_bytes),
            stage.after.join(", ")
        ));
    }
    let shown = directory.display();
    lines.extend([
        String::new(),
        format!("{shown}/work/plan.json has the plan. Run it by Slurm, Snakemake, or by hand:"),
        format!("  quantier cluster slurm {shown}"),
        format!("  quantier cluster snakemake {shown}"),
        format!("  quantier shard {shown} STAGE N, for every N from 0; then quantier merge-shards {shown} STAGE"),
        "then the same command without --plan-only.".into(),
    ]);
    lines.join("\n")
}

pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        ..90.0 => format!("{seconds:.1} s"),
        ..5400.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_have_suitable_units() {
        assert_eq!(
            [0.04, 89.0, 600.0, 36_000.0].map(duration),
            ["0.0 s", "89.0 s", "10 min", "10.0 h"]
        );
    }
}
