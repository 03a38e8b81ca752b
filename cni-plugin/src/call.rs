//! What the runtime says in the environment: CNI spec, section "Parameters".

use std::net::IpAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use netd_ipam::{Owner, Pod};
use netd_kernel::{Mac, Namespace, Netlink};

use crate::config::{address, machine_mac};
use crate::error::{CniError, Code};

/// The longest name of a network interface in bytes (`IFNAMSIZ` without the final zero).
const INTERFACE_MAX: usize = 15;
/// No runtime's container id comes near this; it keeps file names and messages in bounds.
const CONTAINER_MAX: usize = 1024;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container to the network.
    Add,
    /// Undo an ADD, or what is left of it.
    Del,
    /// Verify an ADD's work.
    Check,
    /// Remove what belongs to no valid attachment.
    Gc,
    /// Tell whether an ADD could succeed.
    Status,
    /// Tell the versions.
    Version,
}

/// One call of the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What is to be done.
    pub verb: Verb,
    /// The attachment; empty strings for the verbs without one.
    pub owner: Owner,
    /// The container's namespace; `None` where the runtime gave none, as DEL may.
    pub netns: Option<PathBuf>,
    /// The pod, where the runtime told it.
    pub pod: Option<Pod>,
    /// Whether the check that the namespace is not the host's is switched off.
    pub allow_own_namespace: bool,
    /// `CNI_ARGS` as it came, for another plugin.
    pub arguments: String,
    /// `CNI_PATH`: the directories of other plugins.
    pub plugin_path: String,
    /// Addresses asked for in `CNI_ARGS`.
    pub addresses: Vec<IpAddr>,
    /// The MAC address asked for in `CNI_ARGS`.
    pub mac: Option<Mac>,
}

impl Call {
    /// Reads a call from the environment; `None` when there is no `CNI_COMMAND`: a person started the plugin.
    ///
    /// # Errors
    /// Code 4 names every variable that is missing, or the one that cannot be meant.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, CniError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let Some(command) = set("CNI_COMMAND") else { return Ok(None) };
        let (verb, required): (_, &[&str]) = match command.as_str() {
            "ADD" => (Verb::Add, &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
            "CHECK" => (Verb::Check, &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
            "DEL" => (Verb::Del, &["CNI_CONTAINERID", "CNI_IFNAME"]),
            "GC" => (Verb::Gc, &[]),
            "STATUS" => (Verb::Status, &[]),
            "VERSION" => (Verb::Version, &[]),
            other => return Err(invalid(format!("unknown CNI_COMMAND {other:?}"))),
        };
        let missing: Vec<&str> = required.iter().copied().filter(|name| set(name).is_none()).collect();
        if !missing.is_empty() {
            return Err(invalid(format!(
                "required environment variables are missing: {}",
                missing.join(", ")
            )));
        }
        let mut call = Self {
            verb,
            owner: Owner { container: String::new(), interface: String::new() },
            netns: None,
            pod: None,
            allow_own_namespace: set("CNI_NETNS_OVERRIDE")
                .is_some_and(|v| v == "1" || v.eq_ignore_ascii_case("true")),
            arguments: set("CNI_ARGS").unwrap_or_default(),
            plugin_path: set("CNI_PATH").unwrap_or_default(),
            addresses: Vec::new(),
            mac: None,
        };
        if !required.is_empty() {
            call.owner.container = container_id(set("CNI_CONTAINERID").unwrap_or_default())?;
            call.owner.interface = interface_name(set("CNI_IFNAME").unwrap_or_default())?;
            call.netns = set("CNI_NETNS").map(PathBuf::from);
            call.read_arguments(&call.arguments.clone())?;
        }
        Ok(Some(call))
    }

    /// Reads `CNI_ARGS`: `key=value` pairs separated by semicolons; keys that are not ours are left alone.
    fn read_arguments(&mut self, text: &str) -> Result<(), CniError> {
        let mut pod = Pod::default();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(invalid(format!("CNI_ARGS: {pair:?} is not key=value")));
            };
            match key {
                "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
                "K8S_POD_NAME" => value.clone_into(&mut pod.name),
                "K8S_POD_UID" => value.clone_into(&mut pod.uid),
                "IP" => {
                    let all: Option<Vec<IpAddr>> = value.split(',').map(address).collect();
                    self.addresses = all.ok_or_else(|| argument(key, value))?;
                }
                "MAC" => self.mac = Some(machine_mac(value).ok_or_else(|| argument(key, value))?),
                _ => {}
            }
        }
        self.pod = (!pod.name.is_empty()).then_some(pod);
        Ok(())
    }

    /// Opens the container's namespace.
    ///
    /// # Errors
    /// Code 8 when `CNI_NETNS` is not a network namespace (never waits, whatever it is) or is the caller's own.
    pub fn open_namespace(&self) -> Result<Container, CniError> {
        let path = self.netns.as_deref().unwrap_or(Path::new(""));
        let failed = |cause: &dyn std::fmt::Display| {
            CniError::new(
                Code::InvalidNamespace,
                format!("CNI_NETNS {} is not a network namespace", path.display()),
            )
            .because(cause)
        };
        // A namespace looks like a regular file; opening a FIFO or a device could wait for ever or do something.
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_file() => {}
            Ok(_) => return Err(failed(&"it is not a file")),
            Err(cause) => return Err(failed(&cause)),
        }
        let namespace = Namespace::open(path).map_err(|e| failed(&e))?;
        let home = Namespace::current().map_err(|e| failed(&e))?;
        if !self.allow_own_namespace && namespace.is_same(&home).map_err(|e| failed(&e))? {
            return Err(own_namespace(path));
        }
        Ok(Container { namespace, home })
    }

    /// Whether `CNI_NETNS` names the caller's own namespace, which no container can be in.
    pub fn names_own_namespace(&self) -> bool {
        let Some(path) = self.netns.as_deref().filter(|_| !self.allow_own_namespace) else { return false };
        Namespace::is_current(path)
    }
}

/// A container's namespace, and the way back.
///
/// This program has one thread, so it goes there itself; tests call it from threads of their own, which is the same.
#[derive(Debug)]
pub struct Container {
    namespace: Namespace,
    home: Namespace,
}

impl Container {
    /// Opens a netlink conversation in the container.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn open_netlink(&self) -> netd_kernel::Result<Netlink> {
        self.visit(Netlink::open)?
    }

    /// Does something in the container.
    ///
    /// # Errors
    /// When the container cannot be entered or left.
    pub fn visit<T>(&self, work: impl FnOnce() -> T) -> netd_kernel::Result<T> {
        self.namespace.visit(&self.home, work)
    }
}

impl Deref for Container {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// The error of a call whose namespace is the host's.
pub fn own_namespace(path: &Path) -> CniError {
    CniError::new(Code::InvalidNamespace, format!("CNI_NETNS {} is the host's own namespace", path.display()))
        .and("give the container's, or set CNI_NETNS_OVERRIDE=1 if that is meant")
}

fn argument(key: &str, value: &str) -> CniError {
    invalid(format!("CNI_ARGS {key} {:?} is not valid", shorten(value)))
}

/// Checks a name as the spec does: `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`.
pub fn is_plain_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn container_id(id: String) -> Result<String, CniError> {
    if is_plain_name(&id) && id.len() <= CONTAINER_MAX {
        return Ok(id);
    }
    Err(invalid(format!("CNI_CONTAINERID {:?} is not valid", shorten(&id)))
        .and("it starts with a letter or digit and has only letters, digits, '_', '.' and '-'"))
}

fn interface_name(name: String) -> Result<String, CniError> {
    let reason = if name.len() > INTERFACE_MAX {
        "it is longer than 15 bytes"
    } else if matches!(name.as_str(), "." | "..") {
        "it is a directory"
    } else if name.contains('%') {
        "the kernel would replace '%'"
    } else if name.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control()) {
        "'/', ':', blanks and control characters are not allowed"
    } else {
        return Ok(name);
    };
    Err(invalid(format!("CNI_IFNAME {:?} is not valid", shorten(&name))).because(reason))
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

fn invalid(msg: String) -> CniError {
    CniError::new(Code::InvalidEnvironment, msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Call>, CniError> {
        Call::read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    fn add(changed: (&'static str, &'static str)) -> Result<Option<Call>, CniError> {
        let mut pairs = vec![
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_IFNAME", "eth0"),
        ];
        pairs.retain(|(key, _)| *key != changed.0);
        pairs.push(changed);
        read(&pairs)
    }

    #[test]
    fn without_a_command_a_person_called() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("CNI_COMMAND", ""), ("CNI_IFNAME", "eth0")]), Ok(None));
    }

    #[test]
    fn every_missing_variable_is_named() {
        let error = read(&[("CNI_COMMAND", "ADD")]).unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            assert!(error.msg.contains(name), "{error}");
        }
        let del = read(&[
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", ""),
        ]);
        assert_eq!(del.unwrap().unwrap().netns, None);
        for verb in ["VERSION", "STATUS", "GC"] {
            assert!(read(&[("CNI_COMMAND", verb)]).is_ok());
        }
    }

    #[test]
    fn what_the_kernel_or_a_path_would_misread_is_refused() {
        for id in ["../../etc", "a/b", ".hidden", "-x", "a b", "a\n", "ü", "/"] {
            assert_eq!(add(("CNI_CONTAINERID", id)).unwrap_err().code, Code::InvalidEnvironment, "{id:?}");
        }
        for name in
            ["eth%d", "a/b", "a:b", "a b", "a\tb", "0123456789abcdef", ".", "..", "a\u{7f}", "a\u{a0}b"]
        {
            assert_eq!(add(("CNI_IFNAME", name)).unwrap_err().code, Code::InvalidEnvironment, "{name:?}");
        }
        assert!(add(("CNI_IFNAME", "0123456789abcde")).is_ok());
        assert_eq!(add(("CNI_COMMAND", "add")).unwrap_err().code, Code::InvalidEnvironment);
    }

    #[test]
    fn the_pod_is_read_from_the_arguments() {
        let call =
            add(("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_UID=u;X=a=b"));
        let pod = call.unwrap().unwrap().pod.unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()), ("ns", "web-0", "u"));
        assert_eq!(add(("CNI_ARGS", "nonsense")).unwrap_err().code, Code::InvalidEnvironment);
        let call = add(("CNI_ARGS", "IP=10.0.0.5/24;MAC=02:00:00:00:00:07")).unwrap().unwrap();
        assert_eq!(call.addresses, ["10.0.0.5".parse::<IpAddr>().unwrap()]);
        assert_eq!(call.mac, Some(Mac([2, 0, 0, 0, 0, 7])));
        for wrong in ["IP=x", "IP=", "MAC=1", "MAC=01:00:00:00:00:07", "MAC=00:00:00:00:00:00"] {
            assert_eq!(add(("CNI_ARGS", wrong)).unwrap_err().code, Code::InvalidEnvironment, "{wrong}");
        }
    }

    #[test]
    fn a_fifo_or_a_file_is_no_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        for path in [plain.as_path(), dir.path(), Path::new("/dev/zero"), Path::new("/nonexistent")] {
            let mut call = add(("CNI_NETNS", "x")).unwrap().unwrap();
            call.netns = Some(path.to_owned());
            assert_eq!(call.open_namespace().unwrap_err().code, Code::InvalidNamespace, "{}", path.display());
        }
        let call = add(("CNI_NETNS", "/proc/self/ns/net")).unwrap().unwrap();
        assert!(call.names_own_namespace());
        assert_eq!(call.open_namespace().unwrap_err().code, Code::InvalidNamespace);
    }
}
