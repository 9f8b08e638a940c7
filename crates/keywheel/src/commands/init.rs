//! `keywheel init`: looks at a folder and proposes its configuration. Never shows or writes a value.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::cli::Globals;
use crate::code;
use crate::config;
use crate::exit::Exit;
use crate::init::known::Known;
use crate::init::propose::{self, Proposal};
use crate::init::survey::{self, Survey};
use crate::init::{Warning, plain, text, walk, write};
use crate::output::{Failure, Format};
use crate::words;

/// Propose keywheel.yaml from Compose and .env files here and below, or what an existing one lacks; writes no value
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Show the proposal and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Add to a file that is there already what it lacks
    #[arg(long, conflicts_with = "dry_run")]
    write: bool,
}

/// What one run works on.
struct Work {
    /// The configuration file.
    target: PathBuf,
    survey: Survey,
    known: Option<Known>,
    proposal: Proposal,
}

pub(crate) async fn run(args: &InitArgs, globals: &Globals) -> Result<Exit, Failure> {
    let target = globals.file().map_or_else(|| config::FILE.into(), Path::to_owned);
    let mut work = look(target).await?;
    work.survey.warnings.extend(hidden(&work));
    let output = globals.output();
    for warning in &work.survey.warnings {
        output.note(&format!("warning: {warning}"));
    }
    if work.survey.credentials.is_empty() && work.known.is_none() {
        return Err(nothing(&work.survey));
    }
    let shown = match &work.known {
        None => text::whole(&work.proposal),
        Some(_) => text::additions(&work.proposal),
    };
    let new = next(&work, &shown, args)?;
    if output.format == Format::Text {
        output.text(&shown)?;
    }
    if let Some(new) = &new {
        put(&work, new)?;
    }
    if output.format == Format::Json {
        output.json(&answer(&work, &shown, new.is_some()))?;
    }
    for line in farewell(&work, &shown, new.is_some()) {
        output.note(&line);
    }
    Ok(Exit::Done)
}

async fn look(target: PathBuf) -> Result<Work, Failure> {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let files = walk::files(folder).map_err(|error| {
        Failure::new("the folder cannot be read")
            .caused_by(error.kind().to_string())
            .code(code::UNREADABLE)
    })?;
    let root = files.root.clone();
    let known = known(&target, &root)?;
    let survey = survey::survey(files).await;
    let name = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let proposal = propose::propose(&survey, known.as_ref(), &name);
    Ok(Work { target, survey, known, proposal })
}

fn known(target: &Path, root: &Path) -> Result<Option<Known>, Failure> {
    if target.symlink_metadata().is_err() {
        return Ok(None);
    }
    let text = config::read(target)?;
    let config = config::parse(&text, target)?;
    Ok(Some(Known::of(&config, text, root)))
}

/// Warns of a file above, which commands in this folder would no longer find.
fn hidden(work: &Work) -> Option<Warning> {
    let absolute = std::path::absolute(&work.target).ok()?;
    let mut above = absolute.parent()?.ancestors().skip(1);
    let hides = work.known.is_none() && above.any(|folder| folder.join(config::FILE).is_file());
    hides.then(|| Warning {
        file: None,
        line: None,
        message: format!("a `{}` stands in a folder above; one here hides it", config::FILE),
    })
}

fn nothing(survey: &Survey) -> Failure {
    let failure = if survey.any_file {
        Failure::new(
            "no credential was recognised in the Compose files and files of variables here",
        )
    } else {
        Failure::new("there is no Compose file and no file of variables here or below")
    };
    failure
        .code(code::UNREADABLE)
        .now("nothing was written")
        .hint("`keywheel explain K0101` shows the smallest configuration")
}

/// Returns the text that is to be written, checked as the program checks any configuration; none where nothing is.
fn next(work: &Work, shown: &str, args: &InitArgs) -> Result<Option<String>, Failure> {
    let Some(known) = &work.known else {
        check(work, shown)?;
        return Ok((!args.dry_run).then(|| shown.to_owned()));
    };
    if !args.write || shown.is_empty() {
        return Ok(None);
    }
    let sections = text::sections(&work.proposal);
    let by_hand = |why: &str| {
        Failure::new("the additions cannot be put into the file")
            .caused_by(why)
            .now("nothing changed")
            .hint("leave out `--write`, and add what is shown by hand")
    };
    let remarks = text::listed(&work.proposal);
    let new = write::with(&known.text, &sections, &remarks)
        .ok_or_else(|| by_hand("a part of it stands in one line"))?;
    check(work, &new).map_err(|failure| by_hand(&failure.message))?;
    Ok(Some(new))
}

fn check(work: &Work, text: &str) -> Result<(), Failure> {
    match config::parse(text, &work.target) {
        Ok(_) => Ok(()),
        Err(failure) => Err(failure.now("nothing was written")),
    }
}

fn put(work: &Work, new: &str) -> Result<(), Failure> {
    let done = match &work.known {
        None => write::create(&work.target, new),
        Some(known) => write::replace(&work.target, &known.text, new),
    };
    done.map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::Other => error.to_string(),
            kind => kind.to_string(),
        };
        Failure::new(format!("`{}` cannot be written", plain(&work.target.display().to_string())))
            .caused_by(why)
            .now("nothing changed")
            .code(code::UNREADABLE)
    })
}

fn answer(work: &Work, shown: &str, written: bool) -> serde_json::Value {
    let found = work.survey.credentials.iter().map(|one| {
        let proposed = work
            .proposal
            .secrets
            .iter()
            .find(|secret| secret.parts.values().any(|part| part.spots.contains(&one.spot)));
        let owner = work.known.as_ref().and_then(|known| known.owner(&one.spot));
        let readers: std::collections::BTreeSet<&str> =
            one.readers.iter().map(|reader| reader.service.as_str()).collect();
        json!({
            "file": plain(&one.spot.file),
            "variable": one.spot.variable,
            "line": one.line,
            "kind": one.kind.words(),
            "issuer": one.kind.issuer(),
            "services": readers,
            "secret": owner.or(proposed.map(|secret| secret.name.as_str())),
            "state": state(work, one, proposed),
            "because": proposed.map(|secret| &secret.obstacles),
        })
    });
    json!({
        "file": work.target.display().to_string(),
        "written": written,
        "found": found.collect::<Vec<_>>(),
        "warnings": work.survey.warnings,
        "proposal": shown,
    })
}

fn state(
    work: &Work,
    one: &survey::Credential,
    proposed: Option<&propose::Secret>,
) -> &'static str {
    let known = work.known.as_ref().is_some_and(|known| known.mentions(&one.spot));
    match proposed {
        _ if known => "known",
        Some(secret) if secret.stands() => "proposed",
        Some(_) => "commented_out",
        None => "listed",
    }
}

fn farewell(work: &Work, shown: &str, written: bool) -> Vec<String> {
    let name = plain(&work.target.display().to_string());
    let stands = work.proposal.secrets.iter().filter(|secret| secret.stands()).count();
    let open = work.proposal.secrets.len() - stands;
    let counts = format!(
        "{} proposed, {open} commented out, {} without an issuer",
        words::counted(stands, "secret"),
        work.proposal.listed.len()
    );
    match (&work.known, written) {
        (Some(_), _) if shown.is_empty() => vec![format!("`{name}` lacks nothing that was found")],
        (Some(_), false) => {
            vec![counts, format!("nothing changed; `keywheel init --write` adds this to `{name}`")]
        }
        (None, false) => vec![counts, "nothing was written".into()],
        (_, true) => vec![
            counts,
            format!("wrote `{name}`: read it, and change what is wrong"),
            match stands {
                0 => "then: keywheel check".into(),
                _ => "then: keywheel check, and keywheel adopt --all".into(),
            },
        ],
    }
}
