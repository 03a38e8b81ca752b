//! The state as people read it in a terminal. Pure: text in columns, the way kubectl prints it.

mod status;
mod table;

pub use status::status;

use table::{Cell, Table};

use crate::ServiceState;

/// How many endpoints a row shows unless it may be wide.
const SHOWN_ENDPOINTS: usize = 3;

/// How output looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// With terminal colours.
    pub color: bool,
    /// With all columns and without shortened lists.
    pub wide: bool,
}

impl Style {
    /// The style for an output: colours only on a terminal, and never with `NO_COLOR` set (no-color.org).
    pub const fn for_output(is_tty: bool, no_color: bool, wide: bool) -> Self {
        Self { color: is_tty && !no_color, wide }
    }
}

/// A colour of the terminal's own palette.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    Plain,
    Bold,
    Good,
    Warn,
    Bad,
}

impl Paint {
    /// `text` in this colour, or as it is.
    fn apply(self, text: &str, style: Style) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Bold => "1",
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "31",
        };
        if style.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The table of `netd svc`: a row for each destination of each Service.
pub fn services(services: &[ServiceState], style: Style) -> String {
    let mut header = vec!["NAMESPACE", "NAME", "TYPE", "FRONTEND", "ENDPOINTS", "VERDICT"];
    if style.wide {
        header.extend(["PORT", "KIND", "MASQUERADE", "AFFINITY", "SOURCES"]);
    }
    let mut table = Table::new(&header);
    for service in services {
        let head = [&service.namespace, &service.name, &service.service_type];
        let head = || head.iter().map(|text| Cell::plain(text)).collect::<Vec<_>>();
        if service.frontends.is_empty() {
            let mut row = head();
            row.resize_with(header.len(), Cell::none);
            table.row(row);
        }
        for frontend in &service.frontends {
            let mut row = head();
            row.push(Cell::plain(&frontend.key));
            row.push(Cell::list(&frontend.endpoints, if style.wide { usize::MAX } else { SHOWN_ENDPOINTS }));
            let paint = if frontend.verdict == "Balance" { Paint::Plain } else { Paint::Warn };
            row.push(Cell::painted(&frontend.verdict, paint));
            if style.wide {
                let affinity = frontend.affinity_seconds.map(|seconds| format!("{seconds}s"));
                row.push(Cell::plain(&frontend.port));
                row.push(Cell::plain(&frontend.kind));
                row.push(Cell::plain(&frontend.masquerade));
                row.push(Cell::plain(&affinity.unwrap_or_default()));
                row.push(Cell::list(&frontend.allowed_sources, usize::MAX));
            }
            table.row(row);
        }
    }
    if services.is_empty() { "No services found.\n".to_owned() } else { table.render(style) }
}

/// A span of seconds in at most two units, as kubectl writes ages.
pub fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: u64, unit: char, small: u64, small_unit: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests;
