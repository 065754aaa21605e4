//! The page of requirements: what every test shows, by the place where it is shown. It is made from the names of the
//! tests, which are sentences.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::prose::sources;

/// The parts of the page: the directory whose tests are its own, and its heading. A file belongs to the first that it
/// is below.
const PARTS: [(&str, &str); 13] = [
    ("tests/tests/e2e", "End to end: real agents, a real etcd, real packets"),
    ("tests/tests/hostile", "Under attack"),
    ("tests/tests/faults", "Under faults"),
    ("tests/tests/vm", "On Debian's kernel, in virtual machines"),
    ("tests/tests", "Together, and for long"),
    ("agent/tests", "The whole logic, simulated"),
    ("agent/core", "Decisions"),
    ("agent/kernel/tests", "The kernel, real and fake alike"),
    ("agent/kernel", "What is asked of the kernel"),
    ("agent", "The agent"),
    ("controlplane/model", "Words"),
    ("controlplane", "The control plane"),
    ("tests", "The project itself"),
];

/// The shortest name that is a sentence, in words.
const WORDS: usize = 4;

/// Returns the page, made from the sources below `root`.
#[must_use]
pub fn page(root: &Path) -> String {
    let mut parts: Vec<Vec<(String, Vec<String>)>> = vec![Vec::new(); PARTS.len()];
    for path in sources(root) {
        let Ok(relative) = path.strip_prefix(root) else { continue };
        let Some(part) = PARTS.iter().position(|(directory, _)| relative.starts_with(directory)) else { continue };
        let text = fs::read_to_string(&path).unwrap();
        let names = if relative.starts_with("tests/tests") { named(&text) } else { functions(&text) };
        let sentences: Vec<String> = names.iter().filter_map(|name| sentence(name)).collect();
        if !sentences.is_empty() {
            parts[part].push((relative.display().to_string(), sentences));
        }
    }
    let count: usize = parts.iter().flatten().map(|(_, sentences)| sentences.len()).sum();
    let mut page = format!(
        "# What is required\n\n\
         Each line is the name of a test, which shows it: {count} in all. This page is made from them by `make requirements`.\n"
    );
    for ((_, heading), files) in PARTS.iter().zip(&parts).filter(|(_, files)| !files.is_empty()) {
        let _ = write!(page, "\n## {heading}\n");
        for (file, sentences) in files {
            let _ = write!(page, "\n[{file}](../{file})\n\n");
            for sentence in sentences {
                let _ = writeln!(page, "- {sentence}");
            }
        }
    }
    page
}

/// Returns the names of the functions that are tests.
fn functions(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) else { continue };
        found.push(rest.split(['(', '<']).next().unwrap_or_default().to_owned());
        is_test = false;
    }
    found
}

/// Returns the strings that are names of tests which a table has.
fn named(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for word in line.split('"').skip(1).step_by(2) {
            let is_name = word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:{}".contains(c));
            // Names of series begin like that.
            if is_name && !word.starts_with("flatnet_") && !found.iter().any(|name| name == word) {
                found.push(word.to_owned());
            }
        }
    }
    found
}

/// Writes a name as a sentence; `None` if it is too short for one. What follows `::` is a case of it.
fn sentence(name: &str) -> Option<String> {
    let mut parts = name.split("::");
    let words = parts.next()?.replace('_', " ");
    if words.split_whitespace().count() < WORDS {
        let case = parts.next()?.replace('_', " ");
        return (case.split_whitespace().count() >= WORDS).then(|| capital(&format!("{words}: {case}")));
    }
    let case: Vec<String> = parts.filter(|part| !part.contains('{')).map(|part| part.replace('_', " ")).collect();
    let case = if case.is_empty() { String::new() } else { format!(" ({})", case.join(", ")) };
    Some(capital(&(words + &case)))
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page is written, rather than compared, if this variable is set.
    const WRITE: &str = "FLATNET_WRITE";

    #[test]
    fn the_page_of_requirements_is_that_of_the_tests() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
        let (made, file) = (page(&root), root.join("docs/requirements.md"));
        assert!(made.lines().filter(|line| line.starts_with("- ")).count() > 700, "tests are missing: {made}");
        if std::env::var_os(WRITE).is_some() {
            fs::write(file, made).unwrap();
            return;
        }
        let written = fs::read_to_string(file).unwrap_or_default();
        let differs = written.lines().zip(made.lines()).find(|(old, new)| old != new);
        assert!(written == made, "docs/requirements.md is not current: `make requirements`; first: {differs:?}");
    }

    #[test]
    fn names_of_tests_become_sentences() {
        let text =
            "#[test]\nfn a_lease_is_kept() {}\nfn no_test_of_ours() {}\n#[tokio::test(x)]\nasync fn it_ends() {}\n";
        assert_eq!(functions(text), ["a_lease_is_kept", "it_ends"]);
        let text =
            "Test::new(\"a_mesh_pings_all_pairs::{backend}\", f)\n// \"not_this_one_here\"\n(\"--flag\", \"word\")";
        assert_eq!(named(text), ["a_mesh_pings_all_pairs::{backend}", "word"]);
        assert_eq!(sentence("a_mesh_pings_all_pairs::{backend}").unwrap(), "A mesh pings all pairs");
        assert_eq!(sentence("a_mesh_pings_all_pairs::vxlan_v6").unwrap(), "A mesh pings all pairs (vxlan v6)");
        assert_eq!(
            sentence("refused_at_once::no_nft_program_is_there").unwrap(),
            "Refused at once: no nft program is there"
        );
        assert_eq!(sentence("it_ends"), None);
    }
}
