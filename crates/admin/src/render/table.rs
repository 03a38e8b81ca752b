//! Columns, three spaces apart.

use super::{Paint, Style};

const GAP: usize = 3;

/// One cell: safe text and its colour.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    pub(super) fn plain(text: &str) -> Self {
        Self::painted(text, Paint::Plain)
    }

    pub(super) fn painted(text: &str, paint: Paint) -> Self {
        let text = if text.is_empty() { "<none>".to_owned() } else { printable(text) };
        Self { text, paint }
    }

    pub(super) fn none() -> Self {
        Self::plain("")
    }

    /// At most `shown` of the items, and how many more there are.
    pub(super) fn list(items: &[String], shown: usize) -> Self {
        let visible: Vec<&str> = items.iter().take(shown).map(String::as_str).collect();
        let mut text = visible.join(",");
        let hidden = items.len() - visible.len();
        if hidden > 0 {
            text.push_str(&format!(" + {hidden} more"));
        }
        Self::plain(&text)
    }
}

/// Text without control characters: names come from outside and must not steer the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Rows under a header.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|text| Cell::painted(text, Paint::Bold)).collect()] }
    }

    pub(super) fn row(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    pub(super) fn render(&self, style: Style) -> String {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                let width = cell.text.chars().count();
                match widths.get_mut(column) {
                    Some(widest) => *widest = width.max(*widest),
                    None => widths.push(width),
                }
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                text.push_str(&cell.paint.apply(&cell.text, style));
                if column + 1 < row.len() {
                    let padding = width + GAP - cell.text.chars().count();
                    text.extend(std::iter::repeat_n(' ', padding));
                }
            }
            text.push('\n');
        }
        text
    }
}
