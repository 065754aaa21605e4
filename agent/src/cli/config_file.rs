//! The flag `--config FILE`: TOML whose keys are the flags' names. Default < file < environment < flag: the file's
//! values become the flags' defaults, so clap keeps the order.

use std::path::Path;

use clap::{Arg, Command, Id};

use crate::report::{Exit, Failure};

/// Returns `program` with the values of `file` as defaults of the arguments of `subcommand`, and of its own global
/// ones.
pub fn with_defaults(program: Command, subcommand: &str, file: &Path) -> Result<Command, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::new(Exit::InvalidConfig, format!("cannot read the configuration file {}", file.display()))
            .caused_by(error)
    })?;
    apply(program, subcommand, &text).map_err(|problem| {
        Failure::new(Exit::InvalidConfig, format!("{}: {problem}", file.display()))
            .hint("the keys are the flags of the command without their dashes; see its --help")
    })
}

/// The reason why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// The text is not TOML.
    #[error(transparent)]
    NotToml(#[from] toml::de::Error),
    /// A value has a form that no flag takes.
    #[error("{0}: expected a string, number, boolean, or a list of them")]
    NotScalar(String),
    /// A key that no flag has.
    #[error("unknown key {:?}", flatnet_model::text::excerpt(.0))]
    UnknownKey(String),
}

/// Returns `program` with the values of `text` as defaults, like [`with_defaults`]. The error names what is wrong in
/// `text`.
pub fn apply(mut program: Command, subcommand: &str, text: &str) -> Result<Command, ConfigFileError> {
    let table: toml::Table = text.parse()?;
    for (key, value) in table {
        let values = scalars(&value).ok_or_else(|| ConfigFileError::NotScalar(key.clone()))?;
        let supply = |argument: Arg| argument.required(false).default_values(values);
        let of_subcommand =
            program.find_subcommand(subcommand).and_then(|command| named(command.get_arguments(), &key));
        let global = named(program.get_arguments().filter(|argument| argument.is_global_set()), &key);
        program = match (of_subcommand, global) {
            (Some(id), _) => program.mut_subcommand(subcommand, |command| command.mut_arg(id, supply)),
            (None, Some(id)) => program.mut_arg(id, supply),
            (None, None) => return Err(ConfigFileError::UnknownKey(key)),
        };
    }
    Ok(program)
}

/// Returns which of `arguments` a key means: it is a flag's long name, or a positional argument's name.
fn named<'a>(mut arguments: impl Iterator<Item = &'a Arg>, key: &str) -> Option<Id> {
    let found = arguments.find(|argument| {
        let long = argument.get_long() == Some(key);
        let positional = argument.is_positional() && argument.get_id().as_str() == key;
        (long || positional) && key != "config"
    });
    found.map(|argument| argument.get_id().clone())
}

fn scalars(value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(text) => Some(vec![text.clone()]),
        toml::Value::Integer(number) => Some(vec![number.to_string()]),
        toml::Value::Boolean(truth) => Some(vec![truth.to_string()]),
        toml::Value::Array(items) => items
            .iter()
            .map(|item| scalars(item).filter(|_| !item.is_array()))
            .collect::<Option<Vec<_>>>()
            .map(|all| all.concat()),
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Command {
        let join = Command::new("join")
            .arg(Arg::new("endpoint").required(true).num_args(1..))
            .arg(Arg::new("node_name").long("node-name").env("FLATNET_TEST_NODE_NAME").default_value("host"));
        Command::new("agent")
            .arg(Arg::new("log_level").long("log-level").global(true).default_value("info"))
            .subcommand(join)
    }

    #[test]
    fn the_file_is_below_the_flag_and_above_the_default() {
        let program = || apply(program(), "join", "endpoint = [\"a\", \"b\"]\nnode-name = \"file\"").unwrap();
        let matches = program().try_get_matches_from(["agent", "join"]).unwrap();
        let matches = matches.subcommand_matches("join").unwrap();
        assert_eq!(matches.get_one::<String>("node_name").unwrap(), "file");
        assert_eq!(matches.get_many::<String>("endpoint").unwrap().count(), 2);
        let matches = program().try_get_matches_from(["agent", "join", "--node-name", "flag", "c"]).unwrap();
        let matches = matches.subcommand_matches("join").unwrap();
        assert_eq!(matches.get_one::<String>("node_name").unwrap(), "flag");
        assert_eq!(matches.get_many::<String>("endpoint").unwrap().collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn flags_of_every_command_are_keys_too() {
        let program = apply(program(), "join", "endpoint = \"a\"\nlog-level = \"debug\"").unwrap();
        let matches = program.clone().try_get_matches_from(["agent", "join"]).unwrap();
        assert_eq!(matches.get_one::<String>("log_level").unwrap(), "debug");
        let matches = program.try_get_matches_from(["agent", "join", "--log-level", "warn"]).unwrap();
        assert_eq!(matches.get_one::<String>("log_level").unwrap(), "warn");
    }

    #[test]
    fn the_packaged_file_is_understood_as_it_is_and_with_every_line_in_force() {
        let packaged = include_str!("../../packaging/agent.toml");
        assert!(apply(crate::cli::command(), "join", packaged).is_ok());
        let key = |line: &&str| line.contains(" = ") || line.contains("= [");
        let in_force: String =
            packaged.lines().filter(key).map(|line| format!("{}\n", line.trim_start_matches('#'))).collect();
        let program = apply(crate::cli::command(), "join", &in_force).unwrap();
        program.try_get_matches_from(["agent", "join"]).unwrap();
    }

    #[test]
    fn an_unknown_key_and_a_nested_table_are_refused_by_name() {
        assert!(apply(program(), "join", "node-nam = 1").unwrap_err().to_string().contains("node-nam"));
        assert!(apply(program(), "join", "[node-name]\na = 1").unwrap_err().to_string().contains("node-name"));
        assert!(apply(program(), "join", "node-name = ").unwrap_err().to_string().contains("line 1"));
    }
}
