//! The programs of the application, each a subcommand; one image holds them all.

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use keywheel_core::secret::SecretValue;
use keywheel_example::backend::{self, Model, Settings};
use keywheel_example::edge::Edge;
use keywheel_example::load::{Load, Target};
use keywheel_example::replicas::Replicas;
use keywheel_example::{client, provider, worker};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Where every program listens within its container.
const PORT: u16 = 8080;

/// The time between two lines of the people who use the application.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// A small web application whose credentials are rotated
#[derive(Parser)]
enum Program {
    /// One replica of the backend
    Backend {
        #[arg(long, env = "OPENAI_BASE_URL")]
        openai_base: Option<String>,
    },
    /// What balances requests between the replicas
    Edge {
        /// The name behind which the replicas are
        #[arg(long, default_value = "backend:8080")]
        backend: String,
    },
    /// What asks the model regularly
    Worker {
        #[arg(long, env = "OPENAI_BASE_URL")]
        openai_base: String,
    },
    /// The people who use the application
    Users {
        #[arg(long, default_value = "edge:8080")]
        edge: String,
        #[arg(long, default_value = "backend:8080")]
        backend: String,
        #[arg(long, env = "REQUESTS_EACH_SECOND", default_value_t = 50)]
        each_second: u32,
    },
    /// What stands in for the provider
    Openai(Provider),
    /// Shows the provider's admin key
    OpenaiAdminKey(Provider),
    /// Makes a key at the provider, and shows it
    OpenaiNewKey {
        /// What it is called there
        name: String,
        #[command(flatten)]
        provider: Provider,
    },
    /// Asks the program of this container how it does
    Health {
        #[arg(long, default_value = "/health")]
        path: String,
    },
}

#[derive(clap::Args)]
struct Provider {
    #[arg(long, default_value = "/openai-admin-key")]
    admin_key: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Program::parse() {
        Program::Backend { openai_base } => {
            let settings = Settings::read(variable, openai_base)?;
            backend::serve(settings, listen().await?, asked_to_end()?).await
        }
        Program::Edge { backend } => {
            let edge = Edge::start(listen().await?, Replicas::behind(&backend)?)?;
            until_asked_to_end(edge.ended()).await
        }
        Program::Worker { openai_base } => {
            let key = variable("OPENAI_API_KEY").context("OPENAI_API_KEY is missing")?;
            let model = Model::new(openai_base, key)?;
            until_asked_to_end(worker::run(model, listen().await?)).await
        }
        Program::Users { edge, backend, each_second } => {
            ensure!(each_second > 0, "nobody would use the application");
            let replicas = Replicas::behind(&backend)?;
            use_it(Target { edge, replicas, asks: true }, each_second).await
        }
        Program::Openai(Provider { admin_key }) => {
            until_asked_to_end(provider::run(listen().await?, &admin_key)).await
        }
        Program::OpenaiAdminKey(Provider { admin_key }) => {
            show(&provider::admin_key(&admin_key).await?)
        }
        Program::OpenaiNewKey { name, provider: Provider { admin_key } } => {
            let base = format!("http://127.0.0.1:{PORT}/v1");
            let admin_key = provider::admin_key(&admin_key).await?;
            show(&provider::new_key(&admin_key, &base, &name).await?)
        }
        Program::Health { path } => {
            let url = format!("http://127.0.0.1:{PORT}{path}");
            client(0)?.get(url).send().await?.error_for_status()?;
            Ok(())
        }
    }
}

/// Listens everywhere, unless the environment names an address: pods that share the network of one machine have each their own.
async fn listen() -> anyhow::Result<TcpListener> {
    let address = match std::env::var("POD_IP") {
        Ok(address) => address.parse().context("POD_IP is not an address")?,
        Err(_) => Ipv4Addr::UNSPECIFIED,
    };
    Ok(TcpListener::bind((address, PORT)).await?)
}

fn variable(name: &str) -> Option<SecretValue> {
    std::env::var_os(name).map(|value| SecretValue::new(value.into_vec()))
}

/// Returns when the container is stopped. The first process of a container ends by no signal that it does not listen to.
fn asked_to_end() -> anyhow::Result<impl Future<Output = ()>> {
    let mut asked = signal(SignalKind::terminate())?;
    Ok(async move {
        let _: Option<()> = asked.recv().await;
    })
}

async fn until_asked_to_end(
    serving: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let asked = asked_to_end()?;
    tokio::select! {
        served = serving => served,
        () = asked => Ok(()),
    }
}

/// Uses the application until it is asked to end, and tells every few seconds, and at the end, what was counted.
async fn use_it(target: Target, each_second: u32) -> anyhow::Result<()> {
    let asked = asked_to_end()?;
    tokio::pin!(asked);
    let load = Load::start(target, each_second)?;
    let mut told = 0;
    let mut tell = |counts: keywheel_example::load::Counts| {
        let mut out = std::io::stdout().lock();
        for failure in &counts.failures[told..] {
            writeln!(out, "{failure}")?;
        }
        told = counts.failures.len();
        writeln!(out, "{counts}")
    };
    loop {
        tokio::select! {
            () = tokio::time::sleep(TELL_EVERY) => tell(load.counts())?,
            () = &mut asked => return Ok(tell(load.stop().await)?),
        }
    }
}

/// Shows a value, once, to whoever asked for it.
fn show(value: &SecretValue) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(value.expose())?;
    Ok(writeln!(out)?)
}
