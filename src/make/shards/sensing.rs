//! Sensitivities and output Hessians: the gradients by chunks, then the scores by layers.

use super::parts::{move_files, unit_hessians};
use super::{Cut, Parts, Result};
use crate::format::part::{Part, Writer};
use crate::format::snapshot::Key;
use crate::hessian;
use crate::make::Error;
use crate::make::cost::Cost;
use crate::make::job::Model;
use crate::make::sensitivities::{SCORES, ScoringStage, token_bytes};
use crate::make::stage::Session;
use crate::make::workdir::WorkDir;
use crate::resume::KeyBuilder;
use crate::sensitivity::units::{self, Costs, Unit, locked};
use std::ops::Range;
use std::sync::Mutex;

/// Activations and gradients between all layers, by chunks.
pub(in crate::make) struct Gradients<'c, 'j>(pub(in crate::make) &'c ScoringStage<'j>);

/// Scores by layers.
pub(in crate::make) struct Sensing<'c, 'j>(pub(in crate::make) &'c ScoringStage<'j>);

impl Cut for Gradients<'_, '_> {
    fn name(&self) -> &'static str {
        "gradients"
    }

    fn after(&self) -> &'static [&'static str] {
        &[]
    }

    fn key(&self) -> Result<Key> {
        let job = self.0.job;
        let settings = job.settings();
        let key = KeyBuilder::new("make: gradients between layers")
            .with_model(job.input)?
            .with("tokens", &token_bytes(&self.0.chunks))
            .with("context", &job.context.to_le_bytes())
            .with("draws", &settings.draws.to_le_bytes())
            .with("seed", &settings.seed.to_le_bytes());
        Ok(key.key())
    }

    fn units(&self) -> usize {
        self.0.chunks.len()
    }

    fn together(&self) -> usize {
        let model = self.0.job.model();
        model.map_or(1, |model| model.engine.pool().current_num_threads())
    }

    fn cost(&self, _: usize) -> Cost {
        self.0.cost_of_gradients()
    }

    fn run(
        &self,
        session: &Session<'_>,
        units: Range<usize>,
        parts: &[Mutex<Writer>],
    ) -> Result<()> {
        let model = native(self.0)?;
        let run = self.0.run_of(model, None);
        Ok(units::gradients(&run, units, parts, session.progress)?)
    }

    fn merge(&self, _: &Session<'_>, _: &[Part]) -> Result<()> {
        Ok(())
    }

    fn uses_up(&self) -> &'static [&'static str] {
        &[]
    }
}

/// The model; a stage without one is not cut.
fn native<'s>(stage: &ScoringStage<'s>) -> Result<&'s Model<'s>> {
    stage.job.model().ok_or(Error::NoCuts(
        "the model is not run by the engine of this program",
    ))
}

impl Sensing<'_, '_> {
    /// Output Hessians of the units, until they are merged.
    fn unit_hessians(&self, work: &WorkDir) -> Option<hessian::Job> {
        let job = self.0.output_hessians.as_ref()?;
        Some(unit_hessians(work, self.name(), job))
    }
}

impl Cut for Sensing<'_, '_> {
    fn name(&self) -> &'static str {
        "sensitivities"
    }

    fn after(&self) -> &'static [&'static str] {
        &["imatrix", "hessians", "gradients"]
    }

    fn key(&self) -> Result<Key> {
        let types = serde_json::to_vec(&self.0.needed).unwrap_or_default();
        let hessians = self.0.output_hessians.as_ref();
        let key = KeyBuilder::new("make: part of the scores")
            .with("all", &self.0.key)
            .with("types", &types)
            .with("gradients", hessians.map_or(&[][..], |job| &job.key));
        Ok(key.key())
    }

    fn units(&self) -> usize {
        let model = self.0.job.model();
        model.map_or(0, |model| units::count(model.engine))
    }

    fn cost(&self, unit: usize) -> Cost {
        self.0.cost_of_unit(unit)
    }

    fn run(
        &self,
        session: &Session<'_>,
        units: Range<usize>,
        parts: &[Mutex<Writer>],
    ) -> Result<()> {
        let stage = self.0;
        let model = native(stage)?;
        let gradients = Parts::all(session.work, &Gradients(stage))?;
        let hessians = self.unit_hessians(session.work);
        if let Some(job) = &hessians {
            hessian::clear_others(&job.directory, &job.key)?;
        }
        let run = stage.run_of(model, hessians.as_ref());
        let knowledge = stage.calibrated.knowledge(stage.job.input);
        let allowed = stage.job.allowed();
        for (number, part) in units.zip(parts) {
            let unit = Unit {
                number,
                gradients: &gradients,
            };
            units::scores(&run, &knowledge, &allowed, unit, session.progress)?
                .put(&mut locked(part))?;
        }
        Ok(())
    }

    fn merge(&self, session: &Session<'_>, parts: &[Part]) -> Result<()> {
        let (stage, work) = (self.0, session.work);
        let model = native(stage)?;
        let costs = parts.iter().map(Costs::of);
        let costs = costs.collect::<crate::sensitivity::Result<Vec<_>>>()?;
        let to = stage.output_hessians.as_ref();
        if let (Some(from), Some(to)) = (self.unit_hessians(work), to) {
            hessian::clear_others(&to.directory, &to.key)?;
            move_files(
                [&from.directory, &to.directory],
                costs.iter().flat_map(Costs::files),
            )?;
        }
        let run = stage.run_of(model, to);
        let knowledge = stage.calibrated.knowledge(stage.job.input);
        let allowed = stage.job.allowed();
        let scores = units::merged(&run, &knowledge, &allowed, &costs, session.progress)?;
        work.write(SCORES, &stage.key, &scores)
    }

    fn uses_up(&self) -> &'static [&'static str] {
        &["gradients", "sensitivities"]
    }
}
