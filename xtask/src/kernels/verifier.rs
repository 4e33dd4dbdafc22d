//! The committed table of how many instructions each kernel's verifier walks for each program.
//!
//! A kernel gives up at a million; the table shows how far away that is, and which change brought it nearer.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use anyhow::{Context, Result, ensure};

use crate::root;

const TABLE: &str = "tests/kernels/verifier.txt";
/// By how much, in percent, a figure may differ from the table before that is an error: compilers of one version differ
/// by less, a change that matters by more.
const TOLERANCE_PERCENT: u32 = 10;

const HEAD: &str = "\
# Instructions that the verifier of each kernel walks for each program; it gives up at 1,000,000.
# `cargo xtask test kernels` compares these to ten percent; `cargo xtask test kernels --bless` writes them anew.
";

/// A kernel's name with its figures by program.
pub(super) type Column = (String, BTreeMap<String, u32>);

/// Compares with the table, or writes it.
pub(super) fn check(found: &[Column], bless: bool) -> Result<()> {
    let path = root().join(TABLE);
    if bless {
        fs::create_dir_all(path.parent().expect("the table is in a folder"))?;
        fs::write(&path, format(found))?;
        println!("{TABLE} is written");
        return Ok(());
    }
    let text = fs::read_to_string(&path).with_context(|| format!("read {TABLE}; --bless writes one"))?;
    let differences = compare(&parse(&text)?, found);
    ensure!(
        differences.is_empty(),
        "{}\nif that is meant: cargo xtask test kernels --bless",
        differences.join("\n")
    );
    Ok(())
}

fn format(columns: &[Column]) -> String {
    let mut text = HEAD.to_owned();
    let width = |name: &str| name.len().max(7) + 2;
    let mut line = |first: &str, cells: &mut dyn Iterator<Item = String>| {
        let mut row = format!("{first:<14}");
        for ((name, _), cell) in columns.iter().zip(cells) {
            let _ = write!(row, "{cell:>width$}", width = width(name));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    };
    line("program", &mut columns.iter().map(|(name, _)| name.clone()));
    let programs: std::collections::BTreeSet<&String> =
        columns.iter().flat_map(|(_, rows)| rows.keys()).collect();
    for program in programs {
        line(
            program,
            &mut columns.iter().map(|(_, rows)| rows.get(program).map_or("-".into(), u32::to_string)),
        );
    }
    text
}

fn parse(text: &str) -> Result<Vec<Column>> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let names = lines.next().context("the table has no head")?;
    let mut columns: Vec<Column> =
        names.split_whitespace().skip(1).map(|name| (name.to_owned(), BTreeMap::new())).collect();
    for line in lines {
        let mut cells = line.split_whitespace();
        let program = cells.next().expect("a line that is not empty has a word");
        for ((_, rows), cell) in columns.iter_mut().zip(cells).filter(|(_, cell)| *cell != "-") {
            let figure = cell.parse().with_context(|| format!("`{cell}` in the line of {program}"))?;
            rows.insert(program.to_owned(), figure);
        }
    }
    Ok(columns)
}

/// A line for each figure that is too far from the table's, or in one of the two only. A kernel is known by its suite:
/// a newer one of the same suite is held to the figures of the older.
fn compare(table: &[Column], found: &[Column]) -> Vec<String> {
    let suite = |name: &str| name.split(':').next().unwrap_or_default().to_owned();
    let mut differences = Vec::new();
    for (name, figures) in found {
        let Some((_, expected)) = table.iter().find(|(known, _)| suite(known) == suite(name)) else {
            differences.push(format!("{name} is not in the table"));
            continue;
        };
        for (program, figure) in figures {
            match expected.get(program) {
                None => differences.push(format!("{program} on {name} is not in the table")),
                Some(old) if figure.abs_diff(*old) * 100 > old * TOLERANCE_PERCENT => {
                    differences
                        .push(format!("{program} on {name}: {figure} instructions, {old} in the table"));
                }
                Some(_) => {}
            }
        }
        for program in expected.keys().filter(|program| !figures.contains_key(*program)) {
            differences.push(format!("{program} of the table was not loaded on {name}"));
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, rows: &[(&str, u32)]) -> Column {
        (name.to_owned(), rows.iter().map(|(program, figure)| ((*program).to_owned(), *figure)).collect())
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let columns = [
            column("a:5.10.0-1-amd64", &[("tc_pod", 97_791)]),
            column("b:6.1", &[("tc_pod", 1), ("xdp", 12)]),
        ];
        assert_eq!(parse(&format(&columns)).unwrap(), columns);
    }

    #[test]
    fn what_is_too_far_or_missing_is_told() {
        let table = [column("a:1", &[("one", 1000), ("two", 50)])];
        assert_eq!(compare(&table, &[column("a:2", &[("one", 1100), ("two", 45)])]), Vec::<String>::new());
        for (found, text) in [
            (
                column("a:1", &[("one", 1101), ("two", 50)]),
                "one on a:1: 1101 instructions, 1000 in the table",
            ),
            (column("a:1", &[("one", 899), ("two", 50)]), "one on a:1: 899 instructions, 1000 in the table"),
            (column("a:1", &[("one", 1000)]), "two of the table was not loaded on a:1"),
            (column("a:1", &[("one", 1000), ("two", 50), ("six", 1)]), "six on a:1 is not in the table"),
            (column("b:1", &[]), "b:1 is not in the table"),
        ] {
            assert_eq!(compare(&table, &[found]), [text]);
        }
    }
}
