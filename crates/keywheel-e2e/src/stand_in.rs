//! A stand-in of a cluster, whose pods are processes of this machine.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use keywheel_twins::kubernetes::run::{Run, Runtime, Settings};
use keywheel_twins::kubernetes::{ADMIN, Cluster};

/// A stand-in that runs. It ends when it is dropped.
pub struct StandIn {
    cluster: Cluster,
    _run: Run,
    folder: tempfile::TempDir,
}

impl StandIn {
    /// Starts one, and writes how it is reached.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("keywheel-stand-in-").tempdir()?;
        let pods = folder.path().join("pods");
        fs::DirBuilder::new().mode(0o700).create(&pods)?;
        let cluster = Cluster::start()?;
        let runtime = Runtime::Processes { folder: pods };
        let run = cluster.run(Settings { runtime, ..Settings::default() })?;
        let stand_in = Self { cluster, _run: run, folder };
        stand_in.cluster.write_kubeconfig(&stand_in.kubeconfig())?;
        Ok(stand_in)
    }

    /// Returns the kubeconfig by which it is reached.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Returns the context of that kubeconfig.
    pub fn context(&self) -> &'static str {
        ADMIN
    }

    /// Returns the names of the namespaces that somebody made.
    pub fn namespaces(&self) -> Vec<String> {
        let (all, _) =
            self.cluster.objects().list(keywheel_twins::kubernetes::Kind::Namespace, None);
        let names = all.iter().filter_map(|it| it["metadata"]["name"].as_str());
        names
            .filter(|name| *name != "default" && !name.starts_with("kube-"))
            .map(str::to_owned)
            .collect()
    }
}
