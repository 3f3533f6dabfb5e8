//! The whole report on synthetic models.

use super::data::{DataError, Frontier, Mean, Measured, Point, Preset};
use super::fit_chart::fit_chart;
use super::heat_map::heat_map;
use super::sample::{eight_billion, experts, frontier, hostile, refmodel, unmeasured};
use super::size_chart::size_chart;
use super::svg::Place;
use super::{page::page, text::table};

/// Samples that cover every kind of data.
const SAMPLES: [&str; 7] = [
    "small",
    "large",
    "experts",
    "unmeasured",
    "one",
    "bare",
    "hostile",
];

fn sample(name: &str) -> Frontier {
    let small = || frontier(&refmodel(), &[2.6, 3.1, 3.6, 4.25, 5.0, 6.0]);
    let large = || frontier(&eight_billion(), &[2.5, 3.1, 3.75, 4.25, 4.8, 5.7]);
    match name {
        "small" => small(),
        "large" => large(),
        "experts" => frontier(&experts(), &[3.0, 4.25, 5.5]),
        "unmeasured" => unmeasured(large()),
        "one" => {
            let mut one = Frontier {
                presets: vec![],
                fit: None,
                ..frontier(&refmodel(), &[4.25])
            };
            one.files[0].corrected = None;
            one
        }
        "bare" => Frontier {
            presets: vec![],
            files: vec![],
            fit: None,
            ..small()
        },
        _ => hostile(small()),
    }
}

fn samples() -> impl Iterator<Item = (&'static str, Frontier)> {
    SAMPLES.into_iter().map(|name| (name, sample(name)))
}

/// All pictures of a report.
fn pictures(data: &Frontier) -> Vec<String> {
    let maps = data
        .files
        .iter()
        .map(|file| heat_map(data, file, Place::Alone).0);
    let charts = [
        Some(size_chart(data, Place::Alone)),
        fit_chart(data, Place::Alone),
    ];
    charts.into_iter().flatten().chain(maps).collect()
}

/// Writes all samples to $QUANTIER_REPORTS, for visual inspection.
#[test]
#[ignore = "writes pages to look at"]
fn write_samples() {
    let folder = std::path::PathBuf::from(
        std::env::var_os("QUANTIER_REPORTS").expect("QUANTIER_REPORTS is a folder"),
    );
    for (name, data) in samples() {
        std::fs::write(folder.join(format!("{name}.html")), page(&data)).unwrap();
        std::fs::write(
            folder.join(format!("{name}.svg")),
            size_chart(&data, Place::Alone),
        )
        .unwrap();
        std::fs::write(folder.join(format!("{name}.json")), data.to_json()).unwrap();
        std::fs::write(folder.join(format!("{name}.txt")), table(&data)).unwrap();
    }
}

#[test]
fn json_round_trips() {
    for (name, data) in samples() {
        let json = data.to_json();
        assert_eq!(Frontier::parse(&json).unwrap(), data, "{name}");
        assert!(
            !json.contains("null"),
            "{name}: what is not known is absent"
        );
        let lines =
            data.tensors.len() + data.frontier.len() + data.presets.len() + data.files.len();
        assert!(
            (lines..lines + 200).contains(&json.lines().count()),
            "{name}"
        );
    }
    let old = r#"{"format": 0, "other": []}"#;
    assert!(matches!(Frontier::parse(old), Err(DataError::Format(0))));
    assert!(matches!(
        Frontier::parse("{}"),
        Err(DataError::Malformed(_))
    ));
    let longer = sample("one").to_json().replacen("{", "{\"later\": [1],", 1);
    assert_eq!(Frontier::parse(&longer).unwrap(), sample("one"));
}

/// The documentation covers every field.
#[test]
fn every_field_is_documented() {
    fn names(value: &serde_json::Value, into: &mut std::collections::BTreeSet<String>) {
        match value {
            serde_json::Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                into.insert(name.clone());
                if name != "recipe" {
                    names(value, into);
                }
            }),
            serde_json::Value::Array(items) => items.iter().for_each(|item| names(item, into)),
            _ => {}
        }
    }
    let documented = include_str!("../../../docs/frontier-json.md");
    let mut fields = Default::default();
    names(
        &serde_json::from_str(&sample("experts").to_json()).unwrap(),
        &mut fields,
    );
    assert!(fields.len() > 50);
    for field in fields {
        let word = regex::Regex::new(&format!("`[^`]*\\b{field}\\b[^`]*`")).unwrap();
        assert!(word.is_match(documented), "{field} is not documented");
    }
}

/// Panics unless tags, quotes, entities and characters of `xml` are well-formed.
fn assert_well_formed(xml: &str) {
    let mut open: Vec<&str> = Vec::new();
    let entity = regex::Regex::new("^&(amp|lt|gt|quot|#39);").unwrap();
    let tag = regex::Regex::new(r#"^<([a-z]+)( [a-zA-Z0-9-]+="[^"<>]*")*/?>"#).unwrap();
    for (at, c) in xml.char_indices() {
        let rest = &xml[at..];
        match c {
            '&' => assert!(entity.is_match(rest), "{:.60}", rest),
            '<' if rest.starts_with("</") => {
                let name = open.pop().expect("more tags are closed than opened");
                assert!(
                    rest.starts_with(&format!("</{name}>")),
                    "{name} is not closed by {:.60}",
                    rest
                );
            }
            '<' => {
                let found = tag
                    .captures(rest)
                    .unwrap_or_else(|| panic!("no tag: {rest:.60}"));
                if !found[0].ends_with("/>") {
                    open.push(found.get(1).unwrap().as_str());
                }
            }
            _ => assert!(!c.is_control() || c == '\n', "{c:?}"),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn pictures_are_well_formed_and_stand_alone() {
    for (name, data) in samples() {
        for svg in pictures(&data) {
            assert_well_formed(&svg);
            assert!(
                !svg.contains("var(") && !svg.contains("NaN") && !svg.contains("inf"),
                "{name}"
            );
        }
    }
}

#[test]
fn pages_are_self_contained_and_escape_their_data() {
    for (name, data) in samples() {
        let page = page(&data);
        assert_eq!(page, super::page::page(&data.clone()), "{name}");
        for outside in [
            "<script", "<link", "<img", "href", "src=", "url(", "@import", "NaN", "\u{202e}",
            "\u{1b}",
        ] {
            assert!(!page.contains(outside), "{name} has {outside}");
        }
        assert!(
            !page
                .replace("http://www.w3.org/2000/svg", "")
                .contains("://"),
            "{name}"
        );
        assert_eq!(
            (
                page.matches("</style>").count(),
                page.matches("</html>").count()
            ),
            (1, 1),
            "{name}"
        );
        assert_eq!(
            page.matches("<svg").count(),
            page.matches("</svg>").count(),
            "{name}"
        );
    }
    assert!(
        page(&sample("hostile")).contains("{{ 7*7 }}"),
        "names are no templates"
    );
    assert!(
        !table(&sample("hostile")).contains(['\u{1b}', '\u{202e}']),
        "names cannot steer a terminal"
    );
}

#[test]
fn every_preset_and_file_is_named_in_the_picture() {
    for (name, data) in samples() {
        let svg = size_chart(&data, Place::Alone);
        assert_eq!(
            svg.matches("<text class=\"q-theirs-name\"").count(),
            data.presets.len(),
            "{name}"
        );
        assert_eq!(
            svg.matches("<text class=\"q-ours-name\"").count(),
            data.files.len(),
            "{name}"
        );
    }
}

#[test]
fn heat_maps_have_a_cell_per_tensor() {
    for name in ["small", "large", "experts"] {
        let data = sample(name);
        for file in &data.files {
            let svg = heat_map(&data, file, Place::Alone).0;
            assert_eq!(
                svg.matches("class=\"q-cell\"").count(),
                data.tensors.len(),
                "{name}"
            );
        }
    }
    let data = sample("small");
    let svg = heat_map(&data, &data.files[3], Place::Page).0;
    let tensor = &data.tensors[8];
    let chosen = data.files[3].recipe[&tensor.name].to_uppercase();
    assert!(svg.contains(&format!("<title>{}: {chosen}, ", tensor.name)));
}

/// Missing measurements are not shown, in particular not as 0.
#[test]
fn missing_measurements_are_absent() {
    let data = sample("unmeasured");
    let page = page(&data);
    // Predictions make no claim against presets.
    assert!(page.contains("Nothing has been measured yet") && !page.contains("times</"));
    assert!(page.contains("No preset was measured"));
    assert!(
        !page.contains("<th>99.9%</th><th>same top</th><th>PPL ratio</th>") && !page.contains("±")
    );
    assert!(fit_chart(&data, Place::Page).is_none());
    let table = table(&data);
    assert!(
        !table.contains("mean KLD") && !table.contains("PPL") && !table.contains("vs. presets"),
        "{table}"
    );
    assert!(!super::text::table(&sample("one")).contains("presets"));
}

#[test]
fn files_are_compared_with_presets_of_their_size() {
    let mut data = sample("small");
    let mut compare = |bytes: u64, kld: f64| {
        data.files[0].bytes = bytes;
        data.files[0].measured.as_mut().unwrap().mean = Mean::Kld(kld);
        let found = data.comparison(&data.files[0])?;
        let next = found.next.map(|preset| preset.name.clone());
        Some((found.preset.name.clone(), next, found.theirs, found.ratio()))
    };
    // Q4_K_S and Q4_K_M: the nearer one of the same size, but none that is much smaller.
    assert_eq!(
        compare(4_229_184, 0.0093055),
        Some(("Q4_K_S".into(), None, 0.018611, 0.5))
    );
    assert_eq!(compare(4_229_100, 0.018611).unwrap().0, "Q4_K_S");
    // Between Q4_K_S and Q5_K_M, as a smaller preset beats Q4_K_M: exactly halfway in bytes.
    let (small, next, theirs, _) = compare((4_229_184 + 4_994_624) / 2, 0.01).unwrap();
    assert_eq!(
        (small.as_str(), next.as_deref()),
        ("Q4_K_S", Some("Q5_K_M"))
    );
    assert!((theirs - (0.018611_f64 * 0.005761).sqrt()).abs() < 1e-6);
    // Smaller or larger than all presets.
    assert_eq!(compare(1_000_000, 1.0), None);
    assert_eq!(compare(9_000_000, 1e-4), None);
    // A worse file is reported as worse.
    data.files[0].bytes = 4_229_184;
    data.files[0].measured.as_mut().unwrap().mean = Mean::Kld(0.037222);
    let page = page(&data);
    assert!(
        page.contains("<span class=\"worse\">+100%</span>") && page.contains("0.0186 nats lost")
    );
}

#[test]
fn gains_are_nats_per_byte() {
    let data = sample("small");
    let gains = data.gains();
    assert_eq!(gains.len(), data.tensors.len());
    assert!(
        gains
            .windows(2)
            .all(|pair| pair[0].nats_per_byte >= pair[1].nats_per_byte)
    );
    let first = gains[0];
    assert_eq!(
        (first.few.ggml_type.as_str(), first.more.ggml_type.as_str()),
        ("q3_K", "q5_K")
    );
    let added = (first.more.bytes - first.few.bytes) as f64;
    assert!((first.nats_per_byte * added - (first.few.nats - first.more.nats)).abs() < 1e-15);
}

/// Implausible data still make a page, without a panic.
#[test]
fn implausible_numbers_do_not_panic() {
    let odd = [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300, 1e300];
    for bytes in [0, 1, 4_000_000, u64::MAX] {
        for (i, &x) in odd.iter().enumerate() {
            let mut data = sample(["small", "one"][i % 2]);
            let point = Point {
                bytes,
                bpw: x,
                nats: x,
            };
            data.frontier = vec![point; i];
            data.frontier.push(Point {
                bytes: 5_000_000,
                bpw: 5.0,
                nats: 0.01,
            });
            let measured = Measured {
                mean: Mean::Kld(x),
                uncertainty: Some(x),
                median: None,
                p999: Some(x),
                same_top: Some(x),
                ppl: Some(x),
                ppl_base: Some(x),
                rank_correlation: Some(x),
                shared_neighbours: Some(x),
            };
            data.presets.push(Preset {
                name: "P".into(),
                bytes,
                bpw: x,
                predicted: Some(x),
                measured: Some(measured),
            });
            for file in &mut data.files {
                (file.bytes, file.bpw, file.predicted, file.corrected) = (bytes, x, x, None);
            }
            for tensor in &mut data.tensors {
                tensor.weights = if i == 0 { 0 } else { tensor.weights };
                tensor.layer = tensor.layer.map(|layer| layer.wrapping_mul(u32::MAX));
                tensor.choices.iter_mut().for_each(|choice| choice.nats = x);
            }
            data.fit = data.fit.map(|fit| super::data::Fit {
                scale: x,
                exponent: x,
                ..fit
            });
            data.stages[0].seconds = x;
            page(&data);
            table(&data);
            pictures(&data)
                .iter()
                .for_each(|svg| assert_well_formed(svg));
        }
    }
    let mut empty = sample("bare");
    (empty.tensors, empty.frontier, empty.types) = (vec![], vec![], vec![]);
    assert!(page(&empty).contains("No divergence has been computed yet."));
    table(&empty);
}
