//! A recipe as a heat map: layers from left to right, tensors from top to bottom, coloured by bits
//! per weight.

use super::data::{File, Frontier, Tensor};
use super::numbers::{nats, shorten, size, type_name};
use super::svg::{Anchor, Area, Place, Svg, point, text_width};

/// Maximum width of the picture.
const WIDTH: f64 = 1032.0;
const RIGHT: f64 = 8.0;
const HEAD: f64 = 22.0;
const ROW: f64 = 27.0;
const GAP: f64 = 1.5;
const FOOT: f64 = 6.0;
/// Maximum width of a cell: enough for the longest type name.
const CELL_MOST: f64 = 66.0;
/// Font size of row names, as in the style sheet.
const ROW_SIZE: f64 = 12.0;
const ROW_CHARACTERS: usize = 20;

/// Range of the colour scale in bits per weight.
const SCALE: (f64, f64) = (1.6, 8.5);
/// Colours, evenly spaced: viridis (van der Walt and Smith, 2015), perceptually uniform and safe
/// for the colour-blind.
const COLOURS: [[u8; 3]; 9] = [
    [0x44, 0x01, 0x54],
    [0x47, 0x2d, 0x7b],
    [0x3b, 0x52, 0x8b],
    [0x2c, 0x72, 0x8e],
    [0x21, 0x91, 0x8c],
    [0x28, 0xae, 0x80],
    [0x5e, 0xc9, 0x62],
    [0xad, 0xdc, 0x30],
    [0xfd, 0xe7, 0x25],
];

/// Relative luminance below which white text has more contrast than black (WCAG's contrast ratio:
/// sqrt(1.05 x 0.05) - 0.05).
const LIGHT_TEXT: f64 = 0.18;

/// Colour for bits per weight on a logarithmic scale, and true if text on it should be light.
pub(super) fn colour(bpw: f64) -> (String, bool) {
    let part = ((bpw / SCALE.0).ln() / (SCALE.1 / SCALE.0).ln()).clamp(0.0, 1.0);
    let place = part * (COLOURS.len() - 1) as f64;
    let i = (place as usize).min(COLOURS.len() - 2);
    let mix = |c: usize| {
        let (a, b) = (f64::from(COLOURS[i][c]), f64::from(COLOURS[i + 1][c]));
        (a + (b - a) * (place - i as f64)).round()
    };
    let [r, g, b] = [mix(0), mix(1), mix(2)];
    let linear = |c: f64| (c / 255.0).powf(2.2);
    let luminance = 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    (
        format!("#{:02x}{:02x}{:02x}", r as u8, g as u8, b as u8),
        luminance < LIGHT_TEXT,
    )
}

/// Row order: that of the forward pass; other roles follow in file order.
const ORDER: [&str; 14] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_kv_b",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ffn_gate_shexp",
    "ffn_up_shexp",
    "ffn_down_shexp",
    "ffn_gate_exps",
    "ffn_up_exps",
];

/// Row of a tensor: its role or, outside of layers, its name without `.weight`.
fn row_of(tensor: &Tensor) -> &str {
    match tensor.layer {
        Some(_) => &tensor.role,
        None => tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name),
    }
}

/// Rows of a model: tensors before the layers, those of the layers, tensors after them.
struct Rows<'a> {
    first: Vec<&'a Tensor>,
    layered: Vec<&'a str>,
    last: Vec<&'a Tensor>,
    layers: Vec<u32>,
}

impl<'a> Rows<'a> {
    fn of(tensors: &'a [Tensor]) -> Rows<'a> {
        let mut layers: Vec<u32> = tensors.iter().filter_map(|tensor| tensor.layer).collect();
        layers.sort_unstable();
        layers.dedup();
        let mut layered: Vec<&str> = Vec::new();
        for tensor in tensors.iter().filter(|tensor| tensor.layer.is_some()) {
            let row = row_of(tensor);
            if !layered.contains(&row) {
                layered.push(row);
            }
        }
        layered.sort_by_key(|row| {
            ORDER
                .iter()
                .position(|known| known == row)
                .unwrap_or(ORDER.len())
        });
        let outside = tensors.iter().filter(|tensor| tensor.layer.is_none());
        let (last, first) = outside.partition(|tensor| tensor.role == "output");
        Rows {
            first,
            layered,
            last,
            layers,
        }
    }

    fn count(&self) -> usize {
        self.first.len() + self.layered.len() + self.last.len()
    }
}

/// Contents of a cell.
struct Cell {
    bpw: f64,
    text: String,
    tip: String,
}

impl Cell {
    fn of(data: &Frontier, tensor: &Tensor, file: &File) -> Option<Cell> {
        let ggml_type = file.recipe.get(&tensor.name)?;
        let choice = tensor.choice(ggml_type)?;
        let bpw = choice.bpw(tensor.weights);
        let text = type_name(ggml_type);
        let (name, bytes) = (shorten(&tensor.name, 60), size(choice.bytes));
        let tip = format!(
            "{name}: {text}, {bpw:.2} bpw, {bytes}, {}{} predicted",
            nats(choice.nats),
            data.distance.terms().unit
        );
        Some(Cell { bpw, text, tip })
    }
}

/// The heat map of a file's recipe as SVG, and its width.
pub fn heat_map(data: &Frontier, file: &File, place: Place) -> (String, f64) {
    let rows = Rows::of(&data.tensors);
    let names = rows
        .first
        .iter()
        .chain(&rows.last)
        .map(|tensor| row_of(tensor))
        .chain(rows.layered.iter().copied());
    let widest = names
        .map(|name| shorten(name, ROW_CHARACTERS).chars().count())
        .max()
        .unwrap_or(0);
    let left = (widest as f64 * ROW_SIZE * 0.61 + 14.0).max(70.0);
    let columns = rows.layers.len().max(1);
    let cell = ((WIDTH - left - RIGHT) / columns as f64).min(CELL_MOST);
    let right = left + cell * columns as f64;
    let width = right + RIGHT;
    let height = HEAD + ROW * rows.count() as f64 + FOOT;
    let label = format!(
        "Types of the tensors of {}, layer by layer",
        shorten(&file.name, 80)
    );
    let mut svg = Svg::new(width, height, &label, place);

    let every = (20.0 / cell).ceil().max(1.0) as usize;
    for (column, layer) in rows.layers.iter().enumerate().step_by(every) {
        let x = left + cell * (column as f64 + 0.5);
        svg.text(
            "q-layer",
            point(x, HEAD - 7.0),
            Anchor::Middle,
            &layer.to_string(),
        );
    }
    svg.text(
        "q-layer",
        point(left - 10.0, HEAD - 7.0),
        Anchor::End,
        "layer",
    );

    let cells = |name: &str| -> Vec<(usize, Cell)> {
        let row = data
            .tensors
            .iter()
            .filter(|tensor| tensor.layer.is_some() && row_of(tensor) == name);
        row.filter_map(|tensor| {
            Some((
                rows.layers.binary_search(&tensor.layer?).ok()?,
                Cell::of(data, tensor, file)?,
            ))
        })
        .collect()
    };
    let layered: Vec<(&str, Vec<(usize, Cell)>)> = rows
        .layered
        .iter()
        .map(|name| (*name, cells(name)))
        .collect();
    let texts = layered
        .iter()
        .flat_map(|(_, cells)| cells.iter().map(|(_, cell)| cell.text.as_str()));
    let letters = Lettering::of(texts, cell - GAP);

    let mut y = HEAD;
    let mut name_row = |svg: &mut Svg, name: &str| {
        svg.text(
            "q-row",
            point(left - 10.0, y + ROW / 2.0 + 4.0),
            Anchor::End,
            &shorten(name, ROW_CHARACTERS),
        );
        y += ROW;
        Area {
            x0: left + GAP / 2.0,
            y0: y - ROW + GAP / 2.0,
            x1: right - GAP / 2.0,
            y1: y - GAP / 2.0,
        }
    };
    let wide_row = |svg: &mut Svg, row: Area, tensor: &Tensor| {
        Cell::of(data, tensor, file)
            .iter()
            .for_each(|cell| draw_cell(svg, row, cell, Some(LARGE)));
    };
    for tensor in &rows.first {
        let row = name_row(&mut svg, row_of(tensor));
        wide_row(&mut svg, row, tensor);
    }
    for (name, cells) in &layered {
        let row = name_row(&mut svg, name);
        for (column, shown) in cells {
            let x = left + cell * *column as f64;
            let area = Area {
                x0: x + GAP / 2.0,
                x1: x + (cell - GAP / 2.0).max(GAP),
                ..row
            };
            draw_cell(&mut svg, area, shown, letters);
        }
    }
    for tensor in &rows.last {
        let row = name_row(&mut svg, row_of(tensor));
        wide_row(&mut svg, row, tensor);
    }
    (svg.finish(), width)
}

/// Layout of type names in cells.
#[derive(Clone, Copy)]
struct Lettering {
    size: f64,
    class: &'static str,
    /// Split into two lines at the underscore.
    parted: bool,
}

/// Font sizes, as in the style sheet.
const SIZES: [(f64, &str); 4] = [
    (11.0, "q-cell-11"),
    (9.5, "q-cell-9"),
    (8.0, "q-cell-8"),
    (7.0, "q-cell-7"),
];
/// Layout for cells that span all layers.
const LARGE: Lettering = Lettering {
    size: SIZES[0].0,
    class: SIZES[0].1,
    parted: false,
};

impl Lettering {
    fn lines<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let parts = text.split_once('_').filter(|_| self.parted);
        parts.map_or_else(|| vec![text], |(head, tail)| vec![head, tail])
    }

    /// The largest layout in which every text fits the width, on one line if that is not much
    /// smaller. None if none fits.
    fn of<'a>(texts: impl Iterator<Item = &'a str> + Clone, width: f64) -> Option<Lettering> {
        let sizes = |parted| {
            SIZES.into_iter().map(move |(size, class)| Lettering {
                size,
                class,
                parted,
            })
        };
        let fits = |letters: &Lettering| {
            let mut lines = texts.clone().flat_map(|text| letters.lines(text));
            lines.all(|line| text_width(line, letters.size) <= width - 1.0)
        };
        sizes(false).take(2).chain(sizes(true)).find(fits)
    }
}

fn draw_cell(svg: &mut Svg, area: Area, cell: &Cell, letters: Option<Lettering>) {
    let (fill, dark) = colour(cell.bpw);
    svg.rect("q-cell", area, Some(&fill), &cell.tip);
    let Some(letters) = letters else { return };
    let class = format!(
        "{} {}",
        letters.class,
        if dark { "q-on-dark" } else { "q-on-light" }
    );
    let lines = letters.lines(&cell.text);
    let middle = area.middle();
    let top = middle.y - letters.size * (lines.len() as f64 - 1.0) / 2.0 + 0.36 * letters.size;
    for (i, line) in lines.iter().enumerate() {
        let at = point(middle.x, top + letters.size * i as f64);
        svg.text(&class, at, Anchor::Middle, line);
    }
}
