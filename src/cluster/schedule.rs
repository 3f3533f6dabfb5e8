//! Simulation of a plan on some machines of one kind, with the plan's costs.

use crate::make::{PlannedStage, ShardPlan};

/// Simulated run of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Number of machines.
    pub machines: usize,
    /// Time of the whole run in seconds.
    pub seconds: f64,
    /// Work of all machines in seconds.
    pub work: f64,
}

impl Schedule {
    /// Part of the machines' time that is work.
    pub fn efficiency(&self) -> f64 {
        match self.seconds > 0.0 {
            true => self.work / (self.seconds * self.machines as f64),
            false => 1.0,
        }
    }
}

/// Runs the stages for which `is_counted` on `machines` machines: shards of ready stages start on the next
/// free machine, the longest first; a merge follows the last shard of its stage.
pub fn simulate(
    plan: &ShardPlan,
    machines: usize,
    is_counted: impl Fn(&PlannedStage) -> bool,
) -> Schedule {
    let mut free = vec![0.0f64; machines.max(1)];
    let mut ends: Vec<(&str, f64)> = Vec::new();
    let mut work = 0.0;
    for stage in plan.stages.iter().filter(|stage| is_counted(stage)) {
        let after = ends
            .iter()
            .filter(|(name, _)| stage.after.iter().any(|a| a == name));
        let ready = after.map(|(_, end)| *end).fold(0.0, f64::max);
        let mut seconds: Vec<f64> = stage.shards.iter().map(|shard| shard.seconds).collect();
        seconds.sort_by(|a, b| b.total_cmp(a));
        let mut end = ready;
        let mut run = |seconds: f64, from: f64, free: &mut Vec<f64>| -> f64 {
            let first = free.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1));
            let machine = first.map_or(0, |(machine, _)| machine);
            free[machine] = free[machine].max(from) + seconds;
            work += seconds;
            free[machine]
        };
        for seconds in seconds {
            end = end.max(run(seconds, ready, &mut free));
        }
        end = run(stage.merge_seconds, end, &mut free).max(end);
        ends.push((&stage.name, end));
    }
    Schedule {
        machines: machines.max(1),
        seconds: ends.iter().map(|(_, end)| *end).fold(0.0, f64::max),
        work,
    }
}

/// Time in seconds that no number of machines shortens: for every stage its longest unit, and its merge.
pub fn critical_path(plan: &ShardPlan) -> f64 {
    let mut ends: Vec<(&str, f64)> = Vec::new();
    for stage in plan.stages.iter().filter(|stage| !stage.done) {
        let after = ends
            .iter()
            .filter(|(name, _)| stage.after.iter().any(|a| a == name));
        let ready = after.map(|(_, end)| *end).fold(0.0, f64::max);
        let longest = stage.unit_seconds.iter().copied().fold(0.0, f64::max);
        ends.push((&stage.name, ready + longest + stage.merge_seconds));
    }
    ends.iter().map(|(_, end)| *end).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::plan;

    #[test]
    fn machines_shorten_a_run_down_to_its_critical_path() {
        let plan = plan();
        let all = |machines| simulate(&plan, machines, |stage| !stage.done);
        let one = all(1);
        assert!((one.seconds - one.work).abs() < 1e-9 && one.efficiency() > 0.999);
        let four = all(4);
        assert!(four.seconds < one.seconds && four.seconds >= critical_path(&plan));
        assert!(four.efficiency() <= 1.0 && (four.work - one.work).abs() < 1e-9);
        assert!((all(1000).seconds - critical_path(&plan)).abs() < 1e-9);
    }
}
