//! One result behind another's: what a list of plugins has made so far is passed on.

use serde_json::{Map, Value};

use crate::error::{CniError, Code};

/// Puts `own` behind `previous`: nothing of the earlier plugins' is lost, and an address's interface stays the right
/// one.
///
/// Of the versions with one address a family (`families`) the earlier plugins' stays.
///
/// # Errors
/// Code 6 when `previous` is no result.
pub(super) fn behind(
    previous: &Value,
    mut own: Map<String, Value>,
    families: bool,
) -> Result<Map<String, Value>, CniError> {
    let mut all = previous.as_object().cloned().ok_or_else(|| wrong("it is no object"))?;
    all.remove("cniVersion");
    if families {
        for key in ["ip4", "ip6"] {
            if let (None, Some(value)) = (all.get(key), own.remove(key)) {
                all.insert(key.to_owned(), value);
            }
        }
    } else {
        let before = list(&all, "interfaces")?.len();
        let mut addresses = list(&own, "ips")?;
        for place in addresses.iter_mut().filter_map(|ip| ip.get_mut("interface")) {
            *place = Value::from(place.as_u64().unwrap_or_default() + before as u64);
        }
        own.insert("ips".to_owned(), Value::Array(addresses));
        let is_address = |ip: &Value| ip.get("address").is_some_and(Value::is_string);
        if !list(&all, "ips")?.iter().all(is_address) {
            return Err(wrong("an entry of ips has no address"));
        }
        for key in ["interfaces", "ips", "routes"] {
            let joined = [list(&all, key)?, list(&own, key)?].concat();
            all.insert(key.to_owned(), Value::Array(joined));
        }
    }
    let mut dns = match all.remove("dns") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(dns)) => dns,
        Some(_) => return Err(wrong("dns is no object")),
    };
    if let Some(Value::Object(settings)) = own.remove("dns") {
        dns.extend(settings);
    }
    all.insert("dns".to_owned(), Value::Object(dns));
    Ok(all)
}

fn list(result: &Map<String, Value>, key: &str) -> Result<Vec<Value>, CniError> {
    match result.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => Ok(items.clone()),
        Some(_) => Err(wrong(&format!("{key} is no list"))),
    }
}

fn wrong(why: &str) -> CniError {
    CniError::new(Code::Decode, "prevResult is not valid").because(why)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(previous: Value, own: Value, families: bool) -> Value {
        Value::Object(behind(&previous, own.as_object().unwrap().clone(), families).unwrap())
    }

    #[test]
    fn an_address_keeps_its_interface() {
        let previous = json!({
            "cniVersion": "1.0.0", "interfaces": [{ "name": "a" }, { "name": "b" }], "other": 1,
            "ips": [{ "interface": 1, "address": "10.0.0.1/32" }], "dns": { "domain": "d", "search": ["x"] }
        });
        let own = json!({
            "interfaces": [{ "name": "c" }], "ips": [{ "interface": 0, "address": "10.0.0.2/32" }],
            "routes": [{ "dst": "0.0.0.0/0" }], "dns": { "search": ["y"] }
        });
        let expected = json!({
            "interfaces": [{ "name": "a" }, { "name": "b" }, { "name": "c" }], "other": 1,
            "ips": [{ "interface": 1, "address": "10.0.0.1/32" }, { "interface": 2, "address": "10.0.0.2/32" }],
            "routes": [{ "dst": "0.0.0.0/0" }], "dns": { "domain": "d", "search": ["y"] }
        });
        assert_eq!(merged(previous, own, false), expected);
    }

    #[test]
    fn the_first_address_of_a_family_stays() {
        let own = json!({ "ip4": { "ip": "10.0.0.2/32" }, "ip6": { "ip": "fd00::2/128" }, "dns": {} });
        let all = merged(json!({ "ip4": { "ip": "10.0.0.1/32" } }), own, true);
        assert_eq!(all, json!({ "ip4": { "ip": "10.0.0.1/32" }, "ip6": { "ip": "fd00::2/128" }, "dns": {} }));
    }

    #[test]
    fn what_is_no_result_is_refused() {
        for wrong in [
            json!(1),
            json!({ "ips": 1 }),
            json!({ "dns": "x" }),
            json!({ "interfaces": {} }),
            json!({ "ips": [{}] }),
        ] {
            assert_eq!(behind(&wrong, Map::new(), false).unwrap_err().code, Code::Decode, "{wrong}");
        }
    }
}
