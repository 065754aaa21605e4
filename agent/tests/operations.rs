//! Tests that `docs/operations.md` names every problem code and every check of `agent doctor`, and none that does not
//! exist.
#![expect(clippy::unwrap_used, reason = "this is test code: a failed assumption fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use flatnet_core::problem::ProblemCode;

/// The texts before a check's name in the sources; blanks and brackets may be between.
const BEFORE_A_CHECK: [&str; 4] = ["Check::ok(", "Check::warning(", "Check::failure(", "const NAME: &str ="];

fn sources(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.to_string_lossy().into_owned();
        if path.is_dir() {
            sources(&path, found);
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((name, text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()));
        }
    }
}

/// Finds the string literals right after any of `markers`.
fn literals(text: &str, markers: &[&str], found: &mut BTreeSet<String>) {
    for marker in markers {
        for after in text.split(marker).skip(1) {
            let literal = after
                .trim_start_matches([' ', '\n', '(', '{'])
                .strip_prefix('"')
                .and_then(|rest| rest.split('"').next());
            let is_code =
                |code: &&str| !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
            found.extend(literal.filter(is_code).map(str::to_owned));
        }
    }
}

/// Returns the first column of the table under the heading `heading`: the texts between backquotes.
fn documented(heading: &str) -> BTreeSet<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let text = fs::read_to_string(file).unwrap();
    let section = text.split(&format!("\n## {heading}\n")).nth(1).unwrap().split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap_or_default().to_owned()).collect()
}

fn all_sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let agent = Path::new(env!("CARGO_MANIFEST_DIR"));
    sources(&agent.join("src"), &mut found);
    sources(&agent.join("core/src"), &mut found);
    found
}

#[test]
fn every_problem_code_is_documented() {
    let codes: BTreeSet<String> = ProblemCode::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(codes, documented("Problem codes"), "left: in the sources; right: in docs/operations.md");
}

#[test]
fn every_problem_code_is_said_somewhere() {
    let sources: String = all_sources().into_iter().map(|(_, text)| text).collect();
    for code in ProblemCode::ALL {
        assert!(sources.contains(&format!("ProblemCode::{code:?}")), "{code} is never said");
    }
}

#[test]
fn every_check_of_doctor_is_documented() {
    let mut checks = BTreeSet::new();
    for (_, text) in all_sources().iter().filter(|(file, _)| file.contains("/doctor")) {
        literals(text, &BEFORE_A_CHECK, &mut checks);
    }
    assert!(checks.len() > 15, "the sources are not read as they should be: {checks:?}");
    assert_eq!(checks, documented("Doctor's checks"), "left: in the sources; right: in docs/operations.md");
}
