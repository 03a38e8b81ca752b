use std::collections::BTreeMap;
use std::path::Path;

use netd_kernel::Output;

use super::*;
use crate::config::Variant;

/// A host with some programs, each of which prints one text.
struct FakeHost {
    programs: BTreeMap<&'static str, String>,
    v6: bool,
}

impl FakeHost {
    fn with(programs: &[(&'static str, &str)]) -> Self {
        let programs = programs.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
        Self { programs, v6: false }
    }
}

impl Host for FakeHost {
    fn find(&self, name: &str) -> Option<PathBuf> {
        self.programs.contains_key(name).then(|| Path::new("/fake").join(name))
    }

    fn has_family(&self, family: Family) -> bool {
        family == Family::V4 || self.v6
    }

    fn generation(&self, _variant: Implementation) -> fn() -> Option<u32> {
        || None
    }
}

struct FakeExec(BTreeMap<&'static str, String>);

impl Exec for FakeExec {
    fn run(
        &self,
        program: &Path,
        _args: &[&str],
        _stdin: &[u8],
        _timeout: Duration,
    ) -> netd_kernel::Result<Output> {
        let name = program.file_name().unwrap().to_str().unwrap();
        let stdout = self.0[name].clone();
        let failed = stdout.starts_with("fail:");
        let (stdout, stderr) = if failed { (String::new(), stdout) } else { (stdout, String::new()) };
        Ok(Output { status: i32::from(failed), stdout: stdout.into_bytes(), stderr: stderr.into_bytes() })
    }
}

fn chosen(host: &FakeHost, variant: Variant) -> Result<Implementation, ApplyError> {
    let exec: Arc<dyn Exec> = Arc::new(FakeExec(host.programs.clone()));
    let config = IptablesConfig { variant, ..IptablesConfig::default() };
    choose(&config, &find_tools(host, Duration::from_secs(1), &exec), host)
}

const NFT: &str = "iptables v1.8.9 (nf_tables)";
const LEGACY: &str = "iptables v1.8.9 (legacy)";

fn both(default: &str, nft_save: &str, legacy_save: &str) -> FakeHost {
    FakeHost::with(&[
        ("iptables", default),
        ("iptables-nft-restore", NFT),
        ("iptables-nft-save", nft_save),
        ("iptables-legacy-restore", LEGACY),
        ("iptables-legacy-save", legacy_save),
    ])
}

#[test]
fn without_iptables_one_line_says_what_to_install() {
    let error = chosen(&FakeHost::with(&[]), Variant::Auto).unwrap_err();
    assert!(matches!(error, ApplyError::Config(_)));
    let text = error.to_string();
    assert!(text.contains("apt-get install iptables") && !text.contains('\n'), "{text}");
}

#[test]
fn a_variant_that_is_asked_for_must_be_there() {
    let host = FakeHost::with(&[("iptables-nft-restore", NFT), ("iptables-nft-save", "")]);
    assert_eq!(chosen(&host, Variant::Nft).unwrap(), Implementation::Nft);
    let error = chosen(&host, Variant::Legacy).unwrap_err();
    assert!(error.to_string().contains("iptables-legacy"), "{error}");
}

#[test]
fn the_variant_of_kubelet_wins_over_everything() {
    let hint = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
    let many = "*nat\n:NETD-SERVICES - [0:0]\n-A PREROUTING -j X\n-A PREROUTING -j Y\nCOMMIT\n";
    assert_eq!(chosen(&both(NFT, many, hint), Variant::Auto).unwrap(), Implementation::Legacy);
    let canary = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n";
    assert_eq!(chosen(&both(LEGACY, canary, many), Variant::Auto).unwrap(), Implementation::Nft);
}

#[test]
fn then_the_one_used_before_then_the_one_in_use_then_the_default() {
    let ours = "*nat\n:NETD-SERVICES - [0:0]\nCOMMIT\n";
    let rules = "*filter\n-A INPUT -j ACCEPT\nCOMMIT\n";
    assert_eq!(chosen(&both(NFT, rules, ours), Variant::Auto).unwrap(), Implementation::Legacy);
    assert_eq!(chosen(&both(NFT, "", rules), Variant::Auto).unwrap(), Implementation::Legacy);
    assert_eq!(chosen(&both(LEGACY, "", ""), Variant::Auto).unwrap(), Implementation::Legacy);
    assert_eq!(chosen(&both(NFT, "", ""), Variant::Auto).unwrap(), Implementation::Nft);
}

#[test]
fn a_variant_that_does_not_work_is_passed_over() {
    let host = both(NFT, "fail: Failed to initialize nft: Protocol not supported", "");
    assert_eq!(chosen(&host, Variant::Auto).unwrap(), Implementation::Legacy);
}

#[test]
fn a_passing_failure_does_not_decide_for_the_other_variant() {
    let host = both(NFT, "fail: Resource temporarily unavailable", "");
    assert!(matches!(chosen(&host, Variant::Auto), Err(ApplyError::Refused { .. })));
}

#[test]
fn an_old_iptables_without_variants_is_legacy() {
    let host =
        FakeHost::with(&[("iptables", "iptables v1.6.1"), ("iptables-save", ""), ("iptables-restore", "")]);
    assert_eq!(chosen(&host, Variant::Auto).unwrap(), Implementation::Legacy);
    let exec: Arc<dyn Exec> = Arc::new(FakeExec(host.programs.clone()));
    let tools = find_tools(&host, Duration::ZERO, &exec);
    assert_eq!(tools.len(), 1);
    assert!(!tools[0].version.has_wait_and_random_fully());
}
