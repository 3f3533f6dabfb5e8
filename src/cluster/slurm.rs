//! Job arrays for Slurm.
//!
//! A stage is an array with a task for each shard; its merge depends on the whole array, and the arrays of
//! later stages on the merge. A task whose node dies is queued again by Slurm; one that was killed or ran
//! out of time queues itself again.

use super::{Script, Settings, merge_name};
use crate::make::{PlannedStage, ShardPlan};
use std::fmt::Write;
use std::path::Path;

/// Minutes before the end of a task's time in which it ends by itself.
const MARGIN: u64 = 2;

/// What only Slurm needs.
#[derive(Clone, Debug, Default)]
pub struct Slurm {
    /// `--account`.
    pub account: Option<String>,
    /// `--partition`.
    pub partition: Option<String>,
    /// Lines of the user for every script, behind ours: directives, modules to load.
    pub template: Option<String>,
}

/// Name of the script that submits all others.
pub const SUBMIT: &str = "submit.sh";

/// A script of one job.
struct Job<'j> {
    name: &'j str,
    /// Number of tasks of an array.
    tasks: Option<usize>,
    memory_mib: u64,
    minutes: u64,
    command: String,
}

/// The scripts of a plan; `submit.sh` submits them in order.
pub fn scripts(
    plan: &ShardPlan,
    directory: &Path,
    logs: &Path,
    settings: &Settings,
    slurm: &Slurm,
) -> Vec<Script> {
    let write = |job: &Job<'_>| Script {
        name: format!("{}.sbatch", job.name),
        text: script(job, logs, settings, slurm),
    };
    let mut scripts = Vec::new();
    let mut submit = String::from(
        "#!/bin/sh\n# Submits the jobs of the plan; prints their numbers.\nset -e\ncd \"$(dirname \"$0\")\"\n",
    );
    let open: Vec<&PlannedStage> = plan.stages.iter().filter(|stage| !stage.done).collect();
    let mut submitted = |script: &str, variable: &str, after: &[String]| {
        let after: Vec<_> = after.iter().map(|name| format!("${{{name}}}")).collect();
        let dependency = match after.is_empty() {
            true => String::new(),
            false => format!(
                " --dependency=afterok:{} --kill-on-invalid-dep=yes",
                after.join(":")
            ),
        };
        let _ = write!(
            submit,
            "{variable}=$(sbatch --parsable{dependency} {script}.sbatch)\necho \"{script} ${variable}\"\n"
        );
    };
    for stage in &open {
        let last = stage.shards.len().saturating_sub(1);
        scripts.push(write(&Job {
            name: &stage.name,
            tasks: Some(last + 1),
            memory_mib: Settings::memory_mib(stage),
            minutes: settings.minutes(stage),
            command: format!(
                "{} --threads \"${{SLURM_CPUS_PER_TASK:-1}}\" --max-time {}",
                settings.shard(directory, &stage.name, "\"$SLURM_ARRAY_TASK_ID\""),
                settings.minutes(stage) - MARGIN
            ),
        }));
        let after = open
            .iter()
            .filter(|other| stage.after.contains(&other.name));
        let after: Vec<_> = after.map(|other| format!("merge_{}", other.name)).collect();
        submitted(&stage.name, &stage.name, &after);
        let merge = merge_name(&stage.name);
        scripts.push(write(&Job {
            name: &merge,
            tasks: None,
            memory_mib: Settings::memory_mib(stage),
            minutes: settings.merge_minutes(stage),
            command: format!(
                "{} --threads \"${{SLURM_CPUS_PER_TASK:-1}}\"",
                settings.merge(directory, &stage.name)
            ),
        }));
        submitted(
            &merge,
            &format!("merge_{}", stage.name),
            std::slice::from_ref(&stage.name),
        );
    }
    let memory = plan.stages.iter().map(Settings::memory_mib).max();
    let last = plan.stages.last();
    scripts.push(write(&Job {
        name: "make",
        tasks: None,
        memory_mib: memory.unwrap_or(1024),
        minutes: last.map_or(10, |stage| settings.minutes(stage)).max(60),
        command: settings.make(&plan.directory, &plan.arguments),
    }));
    let merges: Vec<_> = open
        .iter()
        .map(|stage| format!("merge_{}", stage.name))
        .collect();
    submitted("make", "make", &merges);
    scripts.push(Script {
        name: SUBMIT.into(),
        text: submit,
    });
    scripts
}

fn script(job: &Job<'_>, logs: &Path, settings: &Settings, slurm: &Slurm) -> String {
    let log = match job.tasks {
        Some(_) => format!("{}-%a.log", job.name),
        None => format!("{}.log", job.name),
    };
    let mut directives = vec![format!("--job-name=quantier-{}", job.name)];
    directives.extend(job.tasks.map(|tasks| format!("--array=0-{}", tasks - 1)));
    directives.extend([
        "--ntasks=1".into(),
        format!("--cpus-per-task={}", settings.cores),
        format!("--mem={}M", job.memory_mib),
        format!("--time={}", job.minutes),
        format!("--output={}", logs.join(log).display()),
        "--open-mode=append".into(),
        "--requeue".into(),
    ]);
    directives.extend(
        slurm
            .account
            .iter()
            .map(|account| format!("--account={account}")),
    );
    directives.extend(
        slurm
            .partition
            .iter()
            .map(|partition| format!("--partition={partition}")),
    );
    let mut text = String::from("#!/bin/sh\n");
    for directive in directives {
        let _ = writeln!(text, "#SBATCH {directive}");
    }
    if let Some(template) = &slurm.template {
        let _ = writeln!(text, "{}", template.trim_end());
    }
    let _ = write!(
        text,
        "\n{}\ncode=$?\n\
         # Out of time, or killed: queue this task again, not its whole array, whose number one of the tasks has.\n\
         # A refusal (code 1) stays.\n\
         if [ \"$code\" -eq 75 ] || [ \"$code\" -gt 128 ]; then\n    \
             if [ \"${{SLURM_RESTART_COUNT:-0}}\" -lt {} ]; then\n        \
                 task=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}\n        \
                 scontrol requeue \"$task\" && sleep 600\n    \
             fi\n\
         fi\n\
         exit \"$code\"\n",
        job.command, settings.retries
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::{plan, settings};

    #[test]
    fn jobs_depend_on_the_merges_of_earlier_stages() {
        let slurm = Slurm {
            account: Some("lab".into()),
            template: Some("module load quantier".into()),
            ..Slurm::default()
        };
        let out = Path::new("/data/out");
        let scripts = scripts(&plan(), out, Path::new("/logs"), &settings(), &slurm);
        let text = |name: &str| {
            let mut scripts = scripts.iter();
            let script = scripts.find(|script| script.name == name);
            script.unwrap_or_else(|| panic!("no {name}")).text.clone()
        };
        let array = text("sensitivities.sbatch");
        for line in [
            "#SBATCH --array=0-2",
            "#SBATCH --cpus-per-task=16",
            "#SBATCH --mem=3584M",
            "#SBATCH --account=lab",
            "module load quantier",
            "quantier shard /data/out sensitivities \"$SLURM_ARRAY_TASK_ID\" --threads",
            "task=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}",
        ] {
            assert!(array.contains(line), "{line}: {array}");
        }
        let submit = text(SUBMIT);
        let line = "sensitivities=$(sbatch --parsable --dependency=afterok:${merge_gradients} ";
        assert!(submit.contains(line), "{submit}");
        assert!(!submit.contains("imatrix.sbatch"), "it is done: {submit}");
        assert!(text("make.sbatch").contains("cd /home && quantier make m -o out"));
    }
}
