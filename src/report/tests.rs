//! The whole report on made-up models.

use super::data::{DataError, Frontier};
use super::sample::{eight_billion, experts, frontier, hostile, refmodel, unmeasured};
use super::size_chart::size_chart;
use super::svg::Place;
use super::{page::page, text::table};

/// Every kind of data that the report has to show well.
fn samples() -> Vec<(&'static str, Frontier)> {
    let small = frontier(&refmodel(), &[2.6, 3.1, 3.6, 4.25, 5.0, 6.0]);
    let large = frontier(&eight_billion(), &[2.5, 3.1, 3.75, 4.25, 4.8, 5.7]);
    vec![
        ("small", small.clone()),
        ("large", large.clone()),
        ("experts", frontier(&experts(), &[3.0, 4.25, 5.5])),
        ("unmeasured", unmeasured(large)),
        ("one", Frontier { presets: vec![], fit: None, ..frontier(&refmodel(), &[4.25]) }),
        ("bare", Frontier { presets: vec![], files: vec![], fit: None, ..small.clone() }),
        ("hostile", hostile(small)),
    ]
}

/// Writes all samples to $QUANTIER_REPORTS, to be looked at.
#[test]
#[ignore = "writes pages to look at"]
fn write_samples() {
    let folder = std::path::PathBuf::from(std::env::var_os("QUANTIER_REPORTS").expect("QUANTIER_REPORTS is a folder"));
    for (name, data) in samples() {
        std::fs::write(folder.join(format!("{name}.html")), page(&data)).unwrap();
        std::fs::write(folder.join(format!("{name}.svg")), size_chart(&data, Place::Alone)).unwrap();
        std::fs::write(folder.join(format!("{name}.json")), data.to_json()).unwrap();
        std::fs::write(folder.join(format!("{name}.txt")), table(&data)).unwrap();
    }
}

#[test]
fn json_keeps_everything() {
    for (name, data) in samples() {
        let json = data.to_json();
        assert_eq!(Frontier::parse(&json).unwrap(), data, "{name}");
        assert!(!json.contains("null"), "{name}: what is not known is absent");
        let lines = data.tensors.len() + data.frontier.len() + data.presets.len() + data.files.len();
        assert!((lines..lines + 200).contains(&json.lines().count()), "{name}");
    }
    let old = r#"{"format": 0, "other": []}"#;
    assert!(matches!(Frontier::parse(old), Err(DataError::Format(0))));
    assert!(matches!(Frontier::parse("{}"), Err(DataError::Malformed(_))));
}
