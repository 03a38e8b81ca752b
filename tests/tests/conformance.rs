//! The backend-neutral suite, with packets, on every kernel backend of this host.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use libtest_mimic::Trial;
use netd_dataplane::Dataplane;
use netd_dataplane::conformance::{Abilities, Scenario, scenarios};
use netd_lab::Place as _;
use netd_tests::backend::{Home, Kind};
use netd_tests::bed::Bed;
use netd_tests::packets::{self, Rig, Tally};

/// One bed a backend, built by the first test that needs it and shared by its scenarios.
pub(crate) struct Beds {
    beds: Vec<(Kind, Mutex<Option<Standing>>)>,
}

struct Standing {
    bed: Bed,
    backend: Box<dyn Dataplane>,
    abilities: Abilities,
    tally: Tally,
}

impl Beds {
    pub(crate) fn new(kinds: &[Kind]) -> Self {
        Self { beds: kinds.iter().map(|kind| (*kind, Mutex::new(None))).collect() }
    }

    /// Removes the beds and tells how much was tried on each.
    pub(crate) fn close(&self) {
        for (kind, standing) in &self.beds {
            let standing = standing.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(Standing { tally, .. }) = standing else { continue };
            eprintln!(
                "conformance of {kind}: {} rows traced, {} of them tried with {} connections; {} rows refused by \
                 name, {} never seen by it",
                tally.traced, tally.tried, tally.connections, tally.refused, tally.unseen
            );
        }
    }

    fn try_scenario(&self, index: usize, scenario: &Scenario) -> Result<()> {
        let (kind, standing) = self.beds.get(index).context("no such bed")?;
        let mut standing = standing.lock().unwrap_or_else(PoisonError::into_inner);
        if standing.is_none() {
            *standing = Some(Standing::build(*kind)?);
        }
        let standing = standing.as_mut().context("the bed was just built")?;
        let Standing { bed, backend, abilities, tally } = standing;
        let mut rig = Rig { bed, backend: backend.as_mut(), abilities, tally };
        let failures = packets::try_scenario(&mut rig, scenario)?;
        if failures.is_empty() {
            return Ok(());
        }
        bail!("{} rows:\n  {}", failures.len(), failures.join("\n  "))
    }
}

impl Standing {
    fn build(kind: Kind) -> Result<Self> {
        let bed = Bed::build(kind.word())?;
        let node = bed.node()?;
        let abilities = kind.abilities(node)?;
        let home = Home::of(node);
        let backend = node.run(|| -> Result<_> {
            let mut backend = kind.open(&home)?;
            backend.resync()?;
            Ok(backend)
        })??;
        Ok(Self { bed, backend, abilities, tally: Tally::default() })
    }
}

/// One test a scenario and backend; backends alternate, so that two run at the same time.
pub(crate) fn trials(beds: &Arc<Beds>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for scenario in scenarios() {
        for (index, (kind, _)) in beds.beds.iter().enumerate() {
            let name = format!("conformance::{kind}::{}", scenario.name.replace(' ', "_"));
            let (beds, scenario) = (Arc::clone(beds), scenario.clone());
            trials.push(crate::trial(name, move || beds.try_scenario(index, &scenario)));
        }
    }
    trials
}
