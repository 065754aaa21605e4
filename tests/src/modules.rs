//! The top-level modules of a crate and the modules each of them names, read from its sources, with a check that they
//! form no circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The top-level modules of a crate, each with those that it names.
pub type Names = BTreeMap<String, BTreeSet<String>>;

/// Reads the modules below `src`. Those compiled for tests only are left out, and so are `lib` and `main`, which name
/// all.
#[must_use]
pub fn names(src: &Path) -> Names {
    let mut found = Names::new();
    visit(src, src, &mut found);
    let known: BTreeSet<String> = found.keys().cloned().collect();
    for (module, named) in &mut found {
        named.retain(|name| known.contains(name) && name != module);
    }
    found
}

fn visit(src: &Path, directory: &Path, found: &mut Names) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if ["tests", "proptests", "fixture", "lib", "main"].contains(&stem.as_str()) {
            continue;
        }
        if path.is_dir() {
            visit(src, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(src).unwrap();
            let depth = relative.components().count();
            let top = relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
            let text = shipped(&fs::read_to_string(&path).unwrap());
            found.entry(top.to_owned()).or_default().extend(named(&text, depth));
        }
    }
}

/// Returns `text` without comments and without the tests at its end.
fn shipped(text: &str) -> String {
    let end = text.match_indices("#[cfg(test)]\nmod ").find(|(at, _)| {
        let declaration = text[*at..].lines().nth(1).unwrap_or_default();
        declaration.ends_with('{')
    });
    let text = end.map_or(text, |(at, _)| &text[..at]);
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Returns the top-level modules that a file names. The file is `depth` levels below the crate's root (1: a file beside
/// lib.rs).
fn named(text: &str, depth: usize) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let root = "super::".repeat(depth);
    for start in ["crate::", root.as_str()] {
        for (at, _) in text.match_indices(start) {
            // `super::super::x` contains `super::x`, which means something else.
            if text[..at].ends_with("::") || text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let rest = &text[at + start.len()..];
            match rest.strip_prefix('{') {
                Some(list) => names.extend(items(list)),
                None => names.extend(word(rest)),
            }
        }
    }
    names
}

/// Returns the first word of each item of `a::b, c::{d, e}, f}`.
fn items(list: &str) -> BTreeSet<String> {
    let (mut depth, mut items, mut item) = (1_u32, BTreeSet::new(), String::new());
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            items.extend(word(item.trim()));
            item.clear();
        } else {
            item.push(c);
        }
        if depth == 0 {
            break;
        }
    }
    items
}

fn word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

/// Returns a circle among them, if there is one: each module names the next, and the last the first.
#[must_use]
pub fn circle(names: &Names) -> Option<Vec<String>> {
    fn walk<'a>(
        names: &'a Names,
        at: &'a str,
        way: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<String>> {
        if let Some(start) = way.iter().position(|module| *module == at) {
            return Some(way[start..].iter().map(|module| (*module).to_owned()).collect());
        }
        if done.contains(at) {
            return None;
        }
        way.push(at);
        let found = names[at].iter().find_map(|next| walk(names, next, way, done));
        way.pop();
        done.insert(at);
        found
    }
    let mut done = BTreeSet::new();
    names.keys().find_map(|module| walk(names, module, &mut Vec::new(), &mut done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_modules_of_the_agent_its_core_and_the_model_lie_in_a_circle() {
        for (crate_dir, at_least) in [("agent", 9), ("agent/core", 15), ("controlplane/model", 10)] {
            let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(crate_dir).join("src");
            let names = names(&src);
            assert!(names.len() >= at_least, "{crate_dir}: only {} modules were found", names.len());
            assert_eq!(circle(&names), None, "in {crate_dir}");
        }
    }

    #[test]
    fn names_are_found_however_they_are_written_and_circles_with_them() {
        let of = |text, depth| named(&shipped(text), depth).into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(
            of("use crate::a::B;\nuse crate::{c, d::{E, F}, g::h as i};\nlet x = crate::j::k();", 1),
            "a c d g j"
        );
        assert_eq!(of("use super::a::B;", 1), "a");
        assert_eq!(of("use super::a::B; use super::super::c;", 2), "c");
        assert_eq!(of("// crate::a\nuse x::crate_::b;\n#[cfg(test)]\nmod tests {\n    use crate::c;\n}\n", 1), "");
        let names = |edges: &[(&str, &str)]| -> Names {
            let mut names = Names::new();
            for (from, to) in edges {
                names.entry((*from).to_owned()).or_default().insert((*to).to_owned());
                names.entry((*to).to_owned()).or_default();
            }
            names
        };
        assert_eq!(circle(&names(&[("a", "b"), ("b", "c"), ("a", "c")])), None);
        let found = circle(&names(&[("a", "b"), ("b", "c"), ("c", "b")]));
        assert_eq!(found, Some(vec!["b".to_owned(), "c".to_owned()]));
    }
}
