//! Who reads what is rotated, as workloads tell it, compared with who is listed.

#![expect(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::sync::Arc;

use async_trait::async_trait;
use keywheel_core::call::CallError;
use keywheel_core::evidence::Replica;
use keywheel_core::facts::{StoreFacts, WorkloadFacts};
use keywheel_core::fingerprint::Fingerprinter;
use keywheel_core::plan::VersionRef;
use keywheel_core::secret::SecretValue;
use keywheel_core::version::{State, VersionId};
use keywheel_driver::store::{Edit, Store, Written};
use keywheel_driver::workload::{Ensure, Reader, Workload};
use keywheel_driver::{Finding, Severity};
use keywheel_engine::readers;

#[path = "support/plain.rs"]
mod plain;
use plain::{ISSUER, STORE, WORKLOAD, plain_plan};

struct File;

#[async_trait]
impl Store for File {
    fn facts(&self) -> StoreFacts {
        STORE
    }

    fn container(&self) -> String {
        "file:/srv/.env".into()
    }

    async fn preflight(&self, _addresses: &[String]) -> Result<Vec<Finding>, CallError> {
        Ok(Vec::new())
    }

    async fn read(&self, _addresses: &[String]) -> Result<Vec<Option<SecretValue>>, CallError> {
        Ok(Vec::new())
    }

    async fn write(&self, _edits: &[Edit<'_>]) -> Result<Written, CallError> {
        Ok(Written { changed: false })
    }
}

/// A workload that tells of these readers, and whether each runs and takes up the value.
#[derive(Clone)]
struct Service {
    name: &'static str,
    tells: Vec<(&'static str, bool, bool)>,
}

#[async_trait]
impl Workload for Service {
    fn facts(&self) -> WorkloadFacts {
        WORKLOAD
    }

    fn resource(&self) -> String {
        self.name.into()
    }

    async fn preflight(&self) -> Result<Vec<Finding>, CallError> {
        Ok(vec![Finding::note("it is there")])
    }

    async fn readers(&self, slots: &[String]) -> Result<Option<Vec<Reader>>, CallError> {
        let told = self.tells.iter().map(|(name, runs, takes)| Reader {
            name: format!("service `{name}`"),
            resource: (*name).into(),
            slots: if *takes { slots.to_vec() } else { Vec::new() },
            runs: *runs,
        });
        Ok(Some(told.collect()))
    }

    async fn observe(
        &self,
        _slots: &[String],
        _fingerprinter: &Fingerprinter,
    ) -> Result<Vec<Replica>, CallError> {
        Ok(Vec::new())
    }

    async fn roll(&self, _ensure: &Ensure<'_>) -> Result<(), CallError> {
        Ok(())
    }
}

async fn found(services: &[Service]) -> Vec<(bool, String)> {
    let previous =
        VersionRef { version: VersionId(1), issued: None, state: State::Active, fingerprint: None };
    let mut plan = plain_plan(&"key@production".parse().unwrap(), previous, VersionId(2));
    assert_eq!(plan.issuer.facts, ISSUER);
    plan.workloads = vec![plan.workloads[0].clone(); services.len()];
    let workloads: Vec<Arc<dyn Workload>> =
        services.iter().map(|service| Arc::new(service.clone()) as Arc<dyn Workload>).collect();
    let findings = readers::preflight(&plan, &[Arc::new(File)], &workloads, 0).await.unwrap();
    let told = findings.into_iter().map(|one| (one.severity == Severity::Blocks, one.message));
    told.filter(|(_, message)| message != "it is there").collect()
}

#[tokio::test]
async fn h56_a_reader_that_nobody_listed_blocks_and_one_that_does_not_run_is_noted() {
    let web = Service {
        name: "web",
        tells: vec![
            ("web", true, true),
            ("api", true, true),
            ("jobs", true, true),
            ("once", false, true),
        ],
    };
    let api = Service { name: "api", tells: Vec::new() };
    let found = found(&[web, api]).await;
    assert_eq!(found.iter().map(|(blocks, _)| *blocks).collect::<Vec<_>>(), [true, false]);
    assert!(
        found[0].1.starts_with("service `jobs` is given `KEY` too and would keep"),
        "{found:?}"
    );
    assert!(found[1].1.starts_with("service `once` was given `KEY` too"), "{found:?}");
}

#[tokio::test]
async fn h56_a_reader_that_is_listed_and_is_given_nothing_blocks() {
    let web = Service { name: "web", tells: vec![("web", true, false)] };
    let found = found(&[web]).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].0 && found[0].1.starts_with("service `web` is not given `KEY`"), "{found:?}");
}
