//! The output of the commands: to people, to programs, and the refusals of a server.

use std::io::Write;

use flatnet_model::text::{json, line as line_of, set_in};
use tonic::Status;

use flatnet_plane::client::channel::with_causes;
pub use flatnet_plane::failure::{Exit, Failure, print};
use flatnet_plane::wire::refusal;

/// Makes a command's failure of a server's refusal.
#[must_use]
pub fn said(status: Status) -> Failure {
    let status = with_causes(status);
    Failure::new(Exit::of_code(status.code()), status.message()).hint(refusal::details(&status).hint)
}

/// Reports to people what was done, so not on stdout.
pub fn say(text: &str) {
    // When stderr is closed, nobody is left to tell.
    let _ = std::io::stderr().write_all(format!("{}\n", set_in(text)).as_bytes());
}

/// Prints a document for programs.
pub fn print_json(document: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|error| Failure::new(Exit::Internal, "cannot write JSON").caused_by(error))?;
    print(&format!("{}\n", json(&text)))
}

/// Lays out a table with columns as wide as they need to be.
#[must_use]
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| line_of(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|head| head.len())).max().unwrap_or(0)
    };
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> =
            cells.iter().enumerate().map(|(column, cell)| format!("{cell:<width$}", width = width(column))).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(head.to_vec());
    for row in &rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

#[cfg(test)]
mod tests {
    use flatnet_model::text::{HOSTILE, is_shown};

    use super::*;

    #[test]
    fn no_cell_of_a_table_begins_a_line_or_speaks_to_the_terminal() {
        for hostile in HOSTILE {
            let text = table(&["NODE", "NAME"], &[vec!["1".to_owned(), hostile.to_owned()], vec![hostile.to_owned()]]);
            assert_eq!(text.lines().count(), 3, "{text:?}");
            assert!(text.chars().all(|c| is_shown(c) || c == '\n'), "{text:?}");
        }
    }
}
