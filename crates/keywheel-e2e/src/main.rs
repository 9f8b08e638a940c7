//! The scenarios as a program, which `cargo xtask e2e kubernetes` builds and starts.

#![expect(clippy::print_stderr, reason = "it says why it ended")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use keywheel_e2e::{Options, StandIn, run};

#[derive(Parser)]
struct Args {
    #[arg(long, required_unless_present = "stand_in")]
    context: Option<String>,
    #[arg(long, requires = "context")]
    kubeconfig: Option<PathBuf>,
    #[arg(long, conflicts_with = "context")]
    stand_in: bool,
    #[arg(long)]
    image: Option<String>,
    #[arg(long)]
    keep: bool,
    #[arg(long = "scenario")]
    scenarios: Vec<String>,
    #[arg(long)]
    direct: bool,
    #[arg(long)]
    each_second: u32,
    #[arg(long)]
    keywheel: PathBuf,
    #[arg(long)]
    app: PathBuf,
}

fn main() -> ExitCode {
    match begin() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn begin() -> anyhow::Result<ExitCode> {
    let Args {
        context,
        kubeconfig,
        stand_in,
        image,
        keep,
        scenarios,
        direct,
        each_second,
        keywheel,
        app,
    } = Args::parse();
    let stand_in = stand_in.then(StandIn::start).transpose()?;
    let (context, kubeconfig) = match &stand_in {
        Some(stand_in) => (stand_in.context().to_owned(), Some(stand_in.kubeconfig())),
        None => (context.unwrap_or_default(), kubeconfig),
    };
    let options = Options {
        context,
        kubeconfig,
        image,
        keep,
        scenarios,
        keywheel,
        app,
        each_second,
        direct,
        undone_within: Some(Duration::from_secs(10)),
    };
    let counts = run(&options)?;
    Ok(ExitCode::from(u8::from(counts.failed > 0)))
}
