//! `keywheel explain`: the page of an error code.

use clap::Args;
use serde_json::json;

use crate::cli::Globals;
use crate::code::{self, Code};
use crate::exit::Exit;
use crate::output::{Failure, Format};

/// Explain an error code
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The code, such as K0104; all of them are listed without one
    code: Option<String>,
}

pub(crate) fn run(args: &ExplainArgs, globals: &Globals) -> Result<Exit, Failure> {
    let output = globals.output();
    let codes: Vec<Code> = match &args.code {
        Some(name) => vec![Code::named(name).ok_or_else(|| {
            Failure::new("there is no code of this name")
                .hint("`keywheel explain` lists all of them")
                .code(code::USAGE)
        })?],
        None => Code::all().collect(),
    };
    match output.format {
        Format::Json => {
            let pages = codes.iter().map(
                |code| json!({ "code": code.as_str(), "title": code.title(), "page": code.page() }),
            );
            output.json(&json!({ "codes": pages.collect::<Vec<_>>() }))?;
        }
        Format::Text if args.code.is_some() => {
            codes.iter().try_for_each(|code| output.text(code.page()))?
        }
        Format::Text => {
            codes
                .iter()
                .try_for_each(|code| output.text(&format!("{code}  {}\n", code.title())))?;
        }
    }
    Ok(Exit::Done)
}
