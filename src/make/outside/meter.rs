//! Divergences of files from the base, by llama-perplexity.

use super::super::cost::Cost;
use super::super::proof::{Divergence, Meter, Subject};
use super::super::stage::Session;
use super::super::texts::Used;
use super::super::{Job, Result};
use super::logits::BaseLogits;
use super::program::Finished;
use super::{Invocation, Outside, outside_cost};
use crate::report::data;
use crate::resume::KeyBuilder;
use std::path::Path;
use std::time::{Duration, Instant};

/// Maximum number of runs of one measurement. The programs exit without waiting for the thread that
/// prints, so that the last lines are sometimes lost: the mean divergence with five decimals, more
/// often the statistics behind it.
const TRIES: usize = 4;
const TRIES_FOR_STATISTICS: usize = 2;
/// Small models end most abruptly: more runs, within this time.
const PATIENCE: Duration = Duration::from_secs(40);
const MOST_TRIES: usize = 24;
/// Number of positions below which the program states no statistics.
const FEWEST: u64 = 100;

/// Measures by a file of log-probabilities.
pub(in super::super) struct LogitsMeter<'j> {
    pub(in super::super) job: &'j Job<'j>,
    pub(in super::super) outside: &'j Outside,
    pub(in super::super) logits: &'j BaseLogits,
}

impl Meter for LogitsMeter<'_> {
    fn name(&self) -> String {
        self.outside.meter_name()
    }

    fn texts(&self) -> Used {
        let tokens = self.logits.chunks * self.outside.context as u64;
        self.outside.texts.evaluation.used(tokens)
    }

    fn key(&self, key: KeyBuilder) -> KeyBuilder {
        key.with("logits", &self.logits.key)
    }

    fn cost(&self, files: usize) -> Cost {
        let base = self.job.input.tensors.iter().map(|t| t.info.bytes());
        // An upper bound: files are smaller than the base.
        outside_cost(Cost {
            read: base.sum::<u64>() * files as u64,
            ..Cost::default()
        })
    }

    fn measure(&self, session: &Session<'_>, subjects: &[&Subject]) -> Result<Vec<Divergence>> {
        let mut all = Vec::new();
        for subject in subjects {
            let divergence = self.measure_file(session, &subject.path)?;
            subject.store(session.work, &divergence)?;
            all.push(divergence);
        }
        Ok(all)
    }
}

impl LogitsMeter<'_> {
    /// Measures one file.
    pub(super) fn measure_file(&self, session: &Session<'_>, path: &Path) -> Result<Divergence> {
        let mut arguments = self.outside.arguments(path);
        arguments.extend(["--kl-divergence".into(), "--kl-divergence-base".into()]);
        arguments.push(self.logits.path.clone().into());
        let invocation = Invocation {
            program: &self.outside.tools.perplexity,
            arguments,
            log: session.work.path("divergence.log"),
            chunks: self.logits.chunks,
        };
        let (mut stated, mut tries, begun) = (Stated::default(), 0, Instant::now());
        loop {
            let finished = invocation.run(session.progress)?;
            stated.read(&finished.text);
            tries += 1;
            let has_statistics = self.logits.rows >= FEWEST;
            let has_mean = stated
                .row
                .is_some_and(|row| row.chunk == self.logits.chunks);
            let most = match has_mean {
                true => TRIES_FOR_STATISTICS,
                false => TRIES,
            };
            let is_complete = has_mean && (stated.is_complete() || !has_statistics);
            let is_late = tries >= most && begun.elapsed() > PATIENCE;
            if is_complete || is_late || tries == MOST_TRIES || is_failed(&finished.text) {
                let measured = self.checked(&stated, &finished)?;
                finished.accept();
                return Ok(measured);
            }
        }
    }

    /// The divergence, if all chunks were measured.
    fn checked(&self, stated: &Stated, finished: &Finished) -> Result<Divergence> {
        let Some(row) = stated.row else {
            return Err(finished.error("measured nothing").into());
        };
        if row.chunk != self.logits.chunks {
            let what = format!("measured {} of {} chunks", row.chunk, self.logits.chunks);
            return Err(finished.error(what).into());
        }
        let kld = stated.kld.unwrap_or(row.kld);
        if ![kld[0], row.ppl, row.ratio].iter().all(|x| x.is_finite()) {
            return Err(finished.error("the divergence is not a number").into());
        }
        let measured = data::Measured {
            // Rounding of codes can lift an equal model slightly below 0.
            mean: data::Mean::Kld(kld[0].max(0.0)),
            uncertainty: Some(kld[1]).filter(|x| x.is_finite()),
            median: stated.median,
            p999: stated.p999,
            same_top: Some(row.same_top / 100.0),
            ppl: Some(row.ppl),
            ppl_base: Some(row.ppl / row.ratio.exp()),
            rank_correlation: None,
            shared_neighbours: None,
        };
        Ok(Divergence {
            measured,
            rows: self.logits.rows,
            chunks: Vec::new(),
        })
    }
}

/// The line of the last chunk: means over all chunks so far.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    chunk: u64,
    ppl: f64,
    /// Logarithm of the ratio of perplexities.
    ratio: f64,
    /// Mean and standard error, in nats, with five decimals.
    kld: [f64; 2],
    /// Percent.
    same_top: f64,
}

/// Figures of an output; every run states the same ones.
#[derive(Debug, Default)]
struct Stated {
    row: Option<Row>,
    /// Mean and standard error, in nats, with six decimals.
    kld: Option<[f64; 2]>,
    median: Option<f64>,
    p999: Option<f64>,
}

impl Stated {
    /// Adds the figures of an output.
    fn read(&mut self, output: &str) {
        for line in output.lines() {
            self.row = row(line)
                .filter(|new| self.row.is_none_or(|old| new.chunk >= old.chunk))
                .or(self.row);
            let after = |mark: &str| line.split_once(mark).map(|(_, rest)| numbers(rest));
            if let Some([mean, error, ..]) = after("Mean    KLD:").as_deref() {
                self.kld = Some([*mean, *error]);
            }
            let first = |numbers: Option<Vec<f64>>| numbers?.first().copied();
            self.median = first(after("Median  KLD:")).or(self.median);
            self.p999 = first(after("99.9%   KLD:")).or(self.p999);
        }
    }

    fn is_complete(&self) -> bool {
        self.row.is_some() && self.kld.is_some() && self.median.is_some() && self.p999.is_some()
    }
}

/// True if an output reports a failure, which another run would repeat.
fn is_failed(output: &str) -> bool {
    const SIGNS: [&str; 3] = ["failed", "inconsistent vocabulary", "does not look like"];
    output
        .lines()
        .any(|line| SIGNS.iter().any(|sign| line.contains(sign)))
}

/// The numbers of a text.
fn numbers(text: &str) -> Vec<f64> {
    text.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// The figures in a chunk's line: `chunk  PPL ± x  ln ratio ± x  KLD ± x  RMS ± x %  same top ± x %`.
fn row(line: &str) -> Option<Row> {
    const FIGURES: usize = 11;
    let words: Vec<&str> = line
        .split_whitespace()
        .filter(|w| !["±", "%"].contains(w))
        .collect();
    if words.len() != FIGURES || !line.contains('±') {
        return None;
    }
    let figures: Vec<f64> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let figure = |i: usize| figures.get(i).copied();
    Some(Row {
        chunk: words[0].parse().ok()?,
        ppl: figure(1)?,
        ratio: figure(3)?,
        kld: [figure(5)?, figure(6)?],
        same_top: figure(9)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As llama-perplexity prints it.
    const OUTPUT: &str = "
chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS            Same top p
   1       9.3412 ±    1.1254       0.00312 ±    0.00441       0.01021 ±    0.00091     2.811 ±  0.231 %    93.333 ±  1.565 %
   2       9.9034 ±    0.8311       0.00211 ±    0.00301       0.01043 ±    0.00067     2.911 ±  0.171 %    92.941 ±  1.135 %

====== Perplexity statistics ======
Mean PPL(Q)                   :   9.903412 ±   0.831123
Mean PPL(base)                :   9.882537 ±   0.829001

====== KL divergence statistics ======
Mean    KLD:   0.010433 ±   0.000672
Maximum KLD:   0.198412
99.9%   KLD:   0.171203
Median  KLD:   0.006128
 0.1%   KLD:  -0.000001

====== Token probability statistics ======
Same top p: 92.941 ± 1.135 %
";

    #[test]
    fn figures_are_read() {
        let mut stated = Stated::default();
        stated.read(OUTPUT);
        assert!(stated.is_complete(), "{stated:?}");
        let row = stated.row.unwrap();
        assert_eq!((row.chunk, row.ppl, row.ratio), (2, 9.9034, 0.00211));
        assert_eq!((row.kld, row.same_top), ([0.01043, 0.00067], 92.941));
        assert_eq!(stated.kld, Some([0.010433, 0.000672]));
        assert_eq!(
            (stated.median, stated.p999),
            (Some(0.006128), Some(0.171203))
        );
    }

    #[test]
    fn lost_lines_are_found_in_another_run() {
        let (begin, _) = OUTPUT.split_once("99.9%").unwrap();
        let mut stated = Stated::default();
        stated.read(begin);
        assert!(!stated.is_complete() && stated.kld.is_some(), "{stated:?}");
        stated.read(OUTPUT);
        assert!(stated.is_complete());
    }

    #[test]
    fn cut_lines_are_no_figures() {
        let line = OUTPUT.lines().nth(3).unwrap();
        assert!(row(line).is_some());
        assert_eq!(row(&line[..line.len() - 12]), None);
        assert_eq!(row("llama_perf_context_print: load time = 1.0 ms"), None);
        assert!(row(&line.replace("0.01043", "nan")).unwrap().kld[0].is_nan());
    }
}
