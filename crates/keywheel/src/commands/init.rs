//! `keywheel init`: looks at a folder and proposes its configuration. Never shows or writes a value.

use std::path::{Path, PathBuf};

use clap::Args;
use keywheel_drivers::Context;
use keywheel_drivers::kubernetes::Cluster;
use keywheel_drivers::workload::kubernetes::inventory::Inventory;
use serde_json::json;

use crate::cli::Globals;
use crate::code;
use crate::config;
use crate::config::resolve::DEFAULT_ENVIRONMENT;
use crate::exit::Exit;
use crate::init::known::Known;
use crate::init::kubernetes::{self, Scene};
use crate::init::propose::{self, Proposal};
use crate::init::survey::{self, Survey};
use crate::init::{Warning, manifests, plain, text, walk, write};
use crate::output::{Failure, Format};
use crate::words;

/// Propose keywheel.yaml from Compose and .env files here and below, from Kubernetes manifests or a cluster, or what an existing one lacks; writes no value
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Show the proposal and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Add to a file that is there already what it lacks
    #[arg(long, conflicts_with = "dry_run")]
    write: bool,
    /// Read Kubernetes manifests in place of Compose files: files, folders, or `-` for what `helm template` or `kustomize build` prints
    #[arg(long, value_name = "PATH", num_args = 1..)]
    manifests: Vec<PathBuf>,
    /// Ask a Kubernetes cluster what runs. Changes nothing and lists no Secrets; of one that is named and may be read, keys are kept and values dropped
    #[arg(long, requires = "context", conflicts_with = "manifests")]
    cluster: bool,
    /// The context of the cluster
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The kubeconfig that has the context [default: KUBECONFIG, else ~/.kube/config]
    #[arg(long, value_name = "FILE", requires = "context")]
    kubeconfig: Option<PathBuf>,
    /// A namespace to ask about [default: that of the context]; with `--manifests`, that of objects which name none
    #[arg(long, value_name = "NAME")]
    namespace: Vec<String>,
    /// The environment that the cluster or the manifests are of
    #[arg(long, short, value_name = "ENV")]
    environment: Option<String>,
}

impl InitArgs {
    fn is_of_kubernetes(&self) -> bool {
        self.cluster || !self.manifests.is_empty()
    }
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
    let mut work = look(target, args).await?;
    work.survey.warnings.extend(hidden(&work));
    let output = globals.output();
    for warning in &work.survey.warnings {
        output.note(&format!("warning: {warning}"));
    }
    if work.survey.credentials.is_empty() && work.known.is_none() {
        return Err(nothing(&work.survey, args));
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

async fn look(target: PathBuf, args: &InitArgs) -> Result<Work, Failure> {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let unreadable = |error: std::io::Error| {
        Failure::new("the folder cannot be read")
            .caused_by(error.kind().to_string())
            .code(code::UNREADABLE)
    };
    if args.is_of_kubernetes() {
        let root = std::fs::canonicalize(folder).map_err(unreadable)?;
        return of_kubernetes(target, &root, args).await;
    }
    if args.context.is_some() || !args.namespace.is_empty() || args.environment.is_some() {
        let message =
            "`--context`, `--namespace` and `--environment` belong to `--cluster` or `--manifests`";
        return Err(Failure::new(message).code(code::USAGE));
    }
    let files = walk::files(folder).map_err(unreadable)?;
    let root = files.root.clone();
    let known = known(&target, &root)?;
    let survey = survey::survey(files).await;
    let proposal = propose::propose(&survey, known.as_ref(), &name_of(&root));
    Ok(Work { target, survey, known, proposal })
}

fn name_of(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Looks at manifests, or at a cluster.
async fn of_kubernetes(target: PathBuf, root: &Path, args: &InitArgs) -> Result<Work, Failure> {
    let known = known(&target, root)?;
    let environment = environment(known.as_ref(), args)?;
    let mut warnings = Vec::new();
    let (inventory, cluster) = match args.cluster {
        true => live(root, args, &mut warnings).await?,
        false => (manifests::read(&args.manifests, &mut warnings), cluster(root, args, None)),
    };
    let namespace = match &args.namespace[..] {
        [] => "default",
        [one] => one,
        _ if args.cluster => "default",
        _ => {
            let message = "with `--manifests`, `--namespace` is that of objects which name none, and is given once";
            return Err(Failure::new(message).code(code::USAGE));
        }
    };
    let scene = Scene {
        inventory: &inventory,
        live: args.cluster,
        namespace,
        known: known.as_ref(),
        environment: (&environment.0, environment.1),
        project: propose::named_project(&name_of(root)),
        cluster,
    };
    let (survey, proposal) = kubernetes::propose(&scene, warnings);
    Ok(Work { target, survey, known, proposal })
}

/// Returns the environment that is written, and whether it needs no name.
fn environment(known: Option<&Known>, args: &InitArgs) -> Result<(String, bool), Failure> {
    let told = args.environment.clone();
    let Some(known) = known else {
        let single = told.is_none();
        return Ok((told.unwrap_or_else(|| DEFAULT_ENVIRONMENT.into()), single));
    };
    let names = known.names();
    let name = match (told, known.single) {
        (Some(name), true) if !names.contains(&name.as_str()) => {
            let message = "the configuration has no `environments`, so that none can be added";
            return Err(Failure::new(message)
                .now("nothing changed")
                .hint("put what is there below `environments: { NAME: … }` first")
                .code(code::UNKNOWN_NAME));
        }
        (Some(name), _) => name,
        (None, _) if names.len() == 1 => names[0].to_owned(),
        (None, _) => {
            let message = "the configuration has several environments";
            let hint = format!("name one with `--environment`: {}", names.join(", "));
            return Err(Failure::new(message).now("nothing changed").hint(hint).code(code::USAGE));
        }
    };
    match (known.cluster(&name), &args.context) {
        (Some(own), Some(given)) if own != given => {
            let message = format!("environment `{name}` is in the cluster of another context");
            let hint =
                "name that context with `--context`, or another environment with `--environment`";
            Err(Failure::new(message).now("nothing changed").hint(hint).code(code::WRONG_VALUE))
        }
        _ => Ok((name, known.single)),
    }
}

/// Asks a cluster.
async fn live(
    root: &Path,
    args: &InitArgs,
    warnings: &mut Vec<Warning>,
) -> Result<(Inventory, Vec<String>), Failure> {
    let kubeconfig = match &args.kubeconfig {
        Some(path) => Some(std::path::absolute(path).map_err(|error| {
            Failure::new("the kubeconfig has no path").caused_by(error.kind().to_string())
        })?),
        None => None,
    };
    let setting = Cluster { context: args.context.clone(), kubeconfig, in_cluster: None, id: None };
    let asked = Inventory::of_cluster(&setting, &Context::at(root), &args.namespace).await;
    let live = asked.map_err(|error| {
        Failure::new("the cluster could not be asked")
            .caused_by(error.to_string())
            .now("nothing was written")
            .hint("docs/guide/kubernetes-init.md has the smallest Role; it lists no Secrets")
            .exit(Exit::Refused)
    })?;
    let unseen = live.unseen.iter();
    let unseen =
        unseen.map(|what| format!("not allowed: {what}; what would stand there is missing"));
    let odd = live.odd.iter().map(|what| format!("{what}, and is passed over"));
    let messages = unseen.chain(odd);
    warnings.extend(messages.map(|message| Warning { file: None, line: None, message }));
    Ok((live.inventory, cluster(root, args, Some(&live.id))))
}

/// Writes which cluster it is.
fn cluster(root: &Path, args: &InitArgs, id: Option<&str>) -> Vec<String> {
    let context = args.context.as_deref().unwrap_or("REPLACE_ME");
    let mut keys = vec![format!("context: {}", text::scalar(context))];
    let absolute = args.kubeconfig.as_ref().and_then(|path| std::fs::canonicalize(path).ok());
    keys.extend(absolute.map(|path| {
        let path = path.strip_prefix(root).map(Path::to_owned).unwrap_or(path);
        format!("kubeconfig: {}", text::scalar(&path.display().to_string()))
    }));
    keys.extend(id.map(|id| format!("id: {}", text::scalar(id))));
    let remark = match id {
        Some(_) => {
            "# Found in this cluster; another one behind the same context is refused by its id."
        }
        None if args.context.is_some() => "# The cluster to which the manifests are deployed.",
        None => {
            "# The context of your kubeconfig for the cluster to which the manifests are deployed."
        }
    };
    vec![
        "# Values were not looked at: issuers are guessed from the names of keys and variables."
            .into(),
        remark.into(),
        format!("cluster: {{ {} }}", keys.join(", ")),
    ]
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

fn nothing(survey: &Survey, args: &InitArgs) -> Failure {
    let failure = if args.is_of_kubernetes() {
        Failure::new("nothing was found that reads a Secret")
    } else if survey.any_file {
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
            "line": (one.line > 0).then_some(one.line),
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
