//! `ipam.resolvConf`: DNS settings from a file in the format of resolv.conf(5).

use std::path::Path;

use super::{Dns, invalid};
use crate::error::CniError;

/// Reads the file's settings; lines of another kind are passed over.
pub(super) fn read(path: &Path) -> Result<Dns, CniError> {
    let failed = |e: &dyn std::fmt::Display| {
        invalid(format!("ipam.resolvConf {} cannot be read", path.display())).because(e)
    };
    // Reading a FIFO or a device could wait for ever.
    if !std::fs::metadata(path).map_err(|e| failed(&e))?.is_file() {
        return Err(failed(&"it is not a file"));
    }
    std::fs::read_to_string(path).map(|text| parse(&text)).map_err(|e| failed(&e))
}

fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let key = words.next().unwrap_or_default();
        let values = words.map(str::to_owned);
        match key {
            "nameserver" => dns.nameservers.extend(values.take(1)),
            "domain" => dns.domain = values.take(1).next(),
            "search" => dns.search.extend(values),
            "options" => dns.options.extend(values),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_settings_are_read() {
        let dns = parse(
            "# comment\nnameserver 10.0.0.10\nnameserver fd00::a\nsearch a.b c\noptions ndots:5 edns0\ndomain d\nsortlist x\n\n",
        );
        assert_eq!(dns.nameservers, ["10.0.0.10", "fd00::a"]);
        assert_eq!(dns.search, ["a.b", "c"]);
        assert_eq!((dns.options.len(), dns.domain.as_deref()), (2, Some("d")));
    }
}
