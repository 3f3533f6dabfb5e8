//! A Snakefile: a rule for each stage, with a job for each shard.

use super::{Script, Settings, merge_name};
use crate::make::ShardPlan;
use std::fmt::Write;
use std::path::Path;

/// Name of the file.
pub const SNAKEFILE: &str = "Snakefile";

/// The Snakefile of a plan; the marks of finished jobs are in `marks`.
pub fn snakefile(plan: &ShardPlan, directory: &Path, marks: &Path, settings: &Settings) -> Script {
    let mark = |name: &str| quoted(&marks.join(name).display().to_string());
    let mut text = format!(
        "# Shards of a plan of `quantier make --plan-only`. Run it with\n\
         #     snakemake --snakefile {SNAKEFILE} --cores N\n\
         # or with an executor: --executor slurm, kubernetes, googlebatch, aws-batch ...\n\
         # A killed job is started again, and continues; finished shards end at once.\n\n\
         rule all:\n    input: {}\n",
        mark("make")
    );
    for stage in plan.stages.iter().filter(|stage| !stage.done) {
        let after = stage.after.iter().filter(|name| {
            plan.stages
                .iter()
                .any(|other| other.name == **name && !other.done)
        });
        let after: Vec<_> = after.map(|name| mark(&merge_name(name))).collect();
        let shards = stage.shards.len();
        let shard = settings.shard(directory, &stage.name, "{wildcards.shard}");
        let _ = write!(
            text,
            "\nrule {name}:\n    \
             input: {after}\n    \
             output: touch({output})\n    \
             wildcard_constraints: shard=r\"\\d+\"\n    \
             threads: {cores}\n    \
             retries: {retries}\n    \
             resources: mem_mb={memory}, runtime={minutes}\n    \
             shell: {command}\n",
            name = stage.name,
            after = after.join(", "),
            output = mark(&format!("{}-{{shard}}", stage.name)),
            cores = settings.cores,
            retries = settings.retries,
            memory = Settings::memory_mib(stage),
            minutes = settings.minutes(stage),
            command = quoted(&format!("{shard} --threads {{threads}}")),
        );
        let _ = write!(
            text,
            "\nrule merge_{name}:\n    \
             input: expand({input}, shard=range({shards}))\n    \
             output: touch({output})\n    \
             threads: {cores}\n    \
             retries: {retries}\n    \
             resources: mem_mb={memory}, runtime={minutes}\n    \
             shell: {command}\n",
            name = stage.name,
            input = mark(&format!("{}-{{shard}}", stage.name)),
            output = mark(&merge_name(&stage.name)),
            cores = settings.cores,
            retries = settings.retries,
            memory = Settings::memory_mib(stage),
            minutes = settings.merge_minutes(stage),
            command = quoted(&format!(
                "{} --threads {{threads}}",
                settings.merge(directory, &stage.name)
            )),
        );
    }
    let merges = plan.stages.iter().filter(|stage| !stage.done);
    let merges: Vec<_> = merges.map(|stage| mark(&merge_name(&stage.name))).collect();
    let make = settings.make(&plan.directory, &plan.arguments);
    let _ = write!(
        text,
        "\nrule make:\n    \
         input: {}\n    \
         output: touch({})\n    \
         threads: {}\n    \
         retries: {}\n    \
         shell: {}\n",
        merges.join(", "),
        mark("make"),
        settings.cores,
        settings.retries,
        // Braces are Snakemake's own.
        quoted(&make.replace('{', "{{").replace('}', "}}")),
    );
    Script {
        name: SNAKEFILE.into(),
        text,
    }
}

/// A string of Python.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::{plan, settings};

    #[test]
    fn rules_follow_the_plan() {
        let (out, marks) = (Path::new("/data/my out"), Path::new("/marks"));
        let text = snakefile(&plan(), out, marks, &settings()).text;
        for line in [
            "rule gradients:\n    input: \n    output: touch(\"/marks/gradients-{shard}\")",
            "input: \"/marks/merge-gradients\"\n    output: touch(\"/marks/sensitivities-{shard}\")",
            "input: expand(\"/marks/sensitivities-{shard}\", shard=range(3))",
            "shell: \"quantier shard '/data/my out' sensitivities {wildcards.shard} --threads {threads}\"",
            "retries: 5",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("rule imatrix"), "it is done: {text}");
    }
}
