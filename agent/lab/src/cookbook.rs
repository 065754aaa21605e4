//! The command `agent lab cookbook`: recipes people set up by hand, and the same with the agent, run on this machine.
//!
//! The recipes are the page `docs/cookbook.md`, compiled in: what is read there is what is run. `page` parses it,
//! `kitchen` makes hosts as namespaces and types the lines, `machine` does all of it in a virtual machine instead.
//!
//! Each way of a recipe gets fresh hosts, so that what one leaves behind does not help the other.

mod kitchen;
mod machine;
mod needs;
mod page;

use std::process::ExitCode;

use self::kitchen::Kitchen;
use self::page::{Recipe, Way};
use super::{launch, sandbox, tools};
use flatnet_plane::failure::{Exit, Failure, print};

/// The exit code of a program that SIGINT ended, as shells have it.
const INTERRUPTED: u8 = 130;

/// Lists the recipes, or runs one; with `vm` in a virtual machine.
pub fn cookbook(name: Option<&str>, vm: bool) -> Result<ExitCode, Failure> {
    let recipes = page::recipes();
    let Some(name) = name else {
        let lines = recipes.iter().map(|recipe| format!("{:<12}{}\n", recipe.name, recipe.title));
        print(&lines.collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    };
    let recipe = recipes.into_iter().find(|recipe| recipe.name == name).ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("there is no recipe {name:?}")).hint("`agent lab cookbook` lists them")
    })?;
    if vm {
        return machine::run(name);
    }
    if sandbox::is_inside() {
        return launch::inside(run(recipe));
    }
    tools::require_programs(super::LabStore::Etcd)?;
    let code = sandbox::launch(|_| {}).and_then(|mut launched| launched.wait());
    code.map(ExitCode::from)
}

async fn run(recipe: Recipe) -> Result<ExitCode, Failure> {
    tokio::select! {
        ran = cook(&recipe) => ran,
        reason = launch::ended() => {
            flatnet_plane::failure::note(reason?);
            Ok(ExitCode::from(INTERRUPTED))
        }
    }
}

async fn cook(recipe: &Recipe) -> Result<ExitCode, Failure> {
    print(&format!("{}\n\n{}\n{}\n", recipe.title, recipe.introduction, recipe.diagram))?;
    let mut outcomes = Vec::new();
    for way in &recipe.ways {
        print(&format!("=== {}\n\n{}", way.title, way.text))?;
        if way.lines.is_empty() {
            continue;
        }
        outcomes.push((way.title.as_str(), cook_way(way).await?));
    }
    print("=== Result\n\n")?;
    for (title, missing) in &outcomes {
        let said = missing.as_deref().map_or("it works".to_owned(), |missing| format!("NOT RUN here: {missing}"));
        print(&format!("{title}: {said}\n"))?;
    }
    if outcomes.iter().all(|(_, missing)| missing.is_some()) {
        return Err(Failure::new(Exit::Unsupported, "no part of this recipe can run here")
            .hint("`--vm` runs it in a virtual machine with Debian's kernel"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs one way. Returns what is missing for it, if something is.
async fn cook_way(way: &Way) -> Result<Option<String>, Failure> {
    if let Some(missing) = needs::missing(way.needs.as_deref()).await {
        for line in &way.lines {
            print(&format!("{line}\n"))?;
        }
        print(&format!("\nNOT RUN here: {missing}\n\n"))?;
        return Ok(Some(missing));
    }
    let mut kitchen = Kitchen::new().await?;
    let mut cooked = Ok(());
    for line in &way.lines {
        cooked = kitchen.type_line(line).await;
        if cooked.is_err() {
            break;
        }
    }
    kitchen.clean().await?;
    cooked?;
    print("\n")?;
    Ok(None)
}
