//! The truth table of Services: which test proves which row, and whether those tests are there.
//!
//! The table is a file that people read and edit; what is checked is that it does not name tests which somebody renamed or
//! deleted. Sources are read, nothing is built: it must cost nothing to ask.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// The table, and the crate whose tests it names.
const TABLE: &str = "dataplane-user/tests/TRUTH_TABLE.md";
const CRATE: &str = "dataplane-user";
/// Cells of a row.
const COLUMNS: usize = 4;

/// One row.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    thing: String,
    behaviour: String,
    tests: Vec<String>,
    not_yet: String,
}

/// Prints the rows in the table's order; fails when a row has no test, or one that is not there.
pub(crate) fn list() -> Result<()> {
    let root = crate::root();
    let table = root.join(TABLE);
    let rows = parse(&fs::read_to_string(&table).with_context(|| format!("reading {}", table.display()))?)?;
    let present = tests(&root.join(CRATE))?;
    for row in &rows {
        println!("{}: {}", row.thing, row.behaviour);
        for test in &row.tests {
            println!("    {test}{}", if present.contains(test) { "" } else { "   IS NOT THERE" });
        }
        if !row.not_yet.is_empty() {
            println!("    not yet: {}", row.not_yet);
        }
    }
    let problems = problems(&rows, &present);
    ensure!(problems.is_empty(), "{TABLE}: {}", problems.join("; "));
    println!("{} rows", rows.len());
    Ok(())
}

fn problems(rows: &[Row], present: &BTreeSet<String>) -> Vec<String> {
    let missing = rows.iter().flat_map(|row| {
        let gone = row.tests.iter().filter(|test| !present.contains(*test));
        gone.map(|test| format!("`{}` names {test}, which is no test: give its new name", row.thing))
    });
    let unproven = rows.iter().filter(|row| row.tests.is_empty());
    missing.chain(unproven.map(|row| format!("`{}` names no test", row.thing))).collect()
}

/// Rows of all tables of a Markdown text.
fn parse(text: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [thing, behaviour, tests, not_yet] = cells[..] else {
            anyhow::bail!("{TABLE}: a row has {} cells and not {COLUMNS}: {line}", cells.len());
        };
        if thing == "thing" || thing.starts_with("---") {
            continue;
        }
        let tests = tests.split(',').map(str::trim).filter(|test| !test.is_empty());
        rows.push(Row {
            thing: thing.to_owned(),
            behaviour: behaviour.to_owned(),
            tests: tests.map(ToOwned::to_owned).collect(),
            not_yet: not_yet.to_owned(),
        });
    }
    ensure!(!rows.is_empty(), "{TABLE} has no rows");
    Ok(rows)
}

/// Names of a crate's tests: `file::test` of integration tests, `module::tests::test` of unit tests.
fn tests(package: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for (directory, integration) in [("tests", true), ("src", false)] {
        let directory = package.join(directory);
        for file in sources(&directory)? {
            let relative = file.strip_prefix(&directory).expect("it was found below").with_extension("");
            let mut path: Vec<String> =
                relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            if path.last().is_some_and(|last| last == "mod") {
                path.pop();
            }
            if !integration && !path.iter().any(|part| part == "tests") {
                path.push("tests".into());
            }
            let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            names.extend(functions(&text).map(|name| format!("{}::{name}", path.join("::"))));
        }
    }
    Ok(names)
}

/// Functions of a source that are tests.
fn functions(text: &str) -> impl Iterator<Item = &str> {
    let mut is_test = false;
    text.lines().map(str::trim).filter_map(move |line| {
        if line == "#[test]" {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("fn ").filter(|_| is_test) {
            is_test = false;
            return rest.split('(').next();
        }
        None
    })
}

/// Rust sources below a directory.
fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_committed_table_names_tests_that_are_there() {
        let root = crate::root();
        let rows = parse(&fs::read_to_string(root.join(TABLE)).unwrap()).unwrap();
        assert_eq!(problems(&rows, &super::tests(&root.join(CRATE)).unwrap()), [""; 0]);
    }

    #[test]
    fn a_test_that_is_not_there_is_told_by_row() {
        let head = "| thing | behaviour | proven by | not yet |\n|---|---|---|---|\n";
        let rows =
            parse(&format!("{head}| a | b | netns_x::y, plan::tests::z | |\n| c | d | | all |")).unwrap();
        assert_eq!(rows[0].tests, ["netns_x::y", "plan::tests::z"]);
        let present = BTreeSet::from(["netns_x::y".to_owned()]);
        assert_eq!(
            problems(&rows, &present),
            ["`a` names plan::tests::z, which is no test: give its new name", "`c` names no test"]
        );
        assert!(parse(&format!("{head}| a | b |")).is_err());
        assert!(parse("nothing").is_err());
    }

    #[test]
    fn tests_are_found_behind_attributes_and_other_functions_are_not() {
        let text = "#[test]\n#[should_panic]\nfn a() {}\nfn b() {}\n    #[test]\n    fn c(x in 0..1) {}";
        assert_eq!(functions(text).collect::<Vec<_>>(), ["a", "c"]);
    }
}
