use netd_model::FrontendKind;

use super::*;
use crate::fake::Fake;

#[test]
fn the_oracle_agrees_with_every_sketch() {
    let mut wrong = Vec::new();
    for scenario in scenarios() {
        for step in &scenario.steps {
            let plan = step.plan();
            for row in &step.rows {
                if let Err(why) = compare_sketch(row, &verdict(&plan, &row.flow())) {
                    wrong.push(format!("{}, {}, {row}: {why}", scenario.name, step.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_fake_passes_the_suite() {
    let report = run_traces(&mut Fake::new(), &Abilities::all(), &scenarios()).unwrap();
    assert_eq!(report.failures, Vec::<String>::new());
    assert_eq!((report.refused, report.unseen), (0, 0));
    assert!(report.checked > 300, "{} rows", report.checked);
}

#[test]
fn what_a_backend_cannot_do_must_be_refused_by_name() {
    let abilities = Abilities::all().without([Feature::NodePort]);
    let report = run_traces(&mut Fake::refusing([FrontendKind::NodePort]), &abilities, &scenarios()).unwrap();
    assert_eq!(report.failures, Vec::<String>::new());
    assert!(report.refused > 20);

    // The same abilities with a backend that refuses nothing: every such row fails.
    let report = run_traces(&mut Fake::new(), &abilities, &scenarios()).unwrap();
    assert!(report.failures.len() > 20);
    assert!(report.failures.iter().any(|failure| failure.contains("is not among the refused")));
}

#[test]
fn what_a_backend_never_sees_is_counted_and_not_tried() {
    let abilities = Abilities::all().blind_to([Feature::FromOutside]);
    let report = run_traces(&mut Fake::new(), &abilities, &scenarios()).unwrap();
    assert_eq!(report.failures, Vec::<String>::new());
    assert!(report.unseen > 20);
}

#[test]
fn names_are_unique() {
    let scenarios = scenarios();
    let names: BTreeSet<&str> = scenarios.iter().map(|scenario| scenario.name.as_str()).collect();
    assert_eq!(names.len(), scenarios.len());
    for scenario in &scenarios {
        let steps: BTreeSet<&str> = scenario.steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(steps.len(), scenario.steps.len(), "{}", scenario.name);
        assert!(scenario.steps.iter().all(|step| !step.rows.is_empty()), "{}", scenario.name);
    }
}

#[test]
fn every_feature_is_tried() {
    let tried: BTreeSet<Feature> = scenarios()
        .iter()
        .flat_map(|scenario| &scenario.steps)
        .flat_map(|step| &step.rows)
        .flat_map(|row| row.features.iter().copied())
        .collect();
    assert_eq!(tried, Abilities::all().supported);
}

#[test]
fn a_difference_is_told() {
    let endpoint = PoolEndpoint { address: build::ip("172.16.1.5"), port: build::port(80), local: true };
    let expected = Expected::Balance { endpoints: [endpoint].into(), masquerade: Masquerade::Hairpin };
    let elsewhere = PoolEndpoint { local: false, ..endpoint };
    let traced =
        |endpoint, masquerade| Outcome::Balance { endpoints: BTreeSet::from([endpoint]), masquerade };
    assert!(
        compare(&expected, &traced(elsewhere, Masquerade::Hairpin), true).is_ok(),
        "local is not compared"
    );
    assert!(compare(&expected, &traced(endpoint, Masquerade::Always), true).is_err());
    assert!(compare(&expected, &traced(endpoint, Masquerade::Always), false).is_ok());
    let other_port = PoolEndpoint { port: build::port(81), ..endpoint };
    assert!(compare(&expected, &traced(other_port, Masquerade::Hairpin), true).is_err());
    assert!(compare(&Expected::Reject, &Outcome::Drop, true).is_err());
    assert!(compare(&Expected::Pass, &Outcome::Pass, true).is_ok());
}
