//! The catalog of a model: its tensors, linears, inputs and layers, as small integers.
//!
//! Built once, when a model is opened, from the names and shapes of the file's tensors. Later
//! lookups (layer, role, input, experts) use the catalog and never parse a name.
//!
//! ```text
//! TensorId     position in the file
//! LinearId     position in model order: layer by layer, in forward order; output last
//! InputId      activations that one or more linears read
//! LayerId      number of the layer
//! ```

use crate::role::{self, Facts, Role};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);

        impl $name {
            /// Index into a list of all ids.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

id! {
    /// A tensor: its position among all tensors of the input.
    TensorId
}
id! {
    /// A linear: its position in model order.
    LinearId
}
id! {
    /// The activations read by one or more linears: their position in model order.
    InputId
}
id! {
    /// A layer, counted from 0.
    LayerId
}

/// The entry of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Position in the file.
    pub id: TensorId,
    /// Name in the file.
    pub name: Box<str>,
    /// Dimensions, row length first, missing ones 1.
    pub dims: [u64; 4],
    /// Properties that the reference's quantizer derives from the name.
    pub facts: Facts,
    /// The layer, if any.
    pub layer: Option<LayerId>,
    /// True for lookup tables: embeddings and position tables. A tied embedding is also a linear.
    pub is_table: bool,
    /// The linear with this weight.
    pub linear: Option<LinearId>,
    /// Byte range of the short name in the name.
    label: Range<usize>,
}

/// A weight matrix that multiplies activations, or several matrices of one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Position in model order.
    pub id: LinearId,
    /// The weight.
    pub tensor: TensorId,
    /// Factor of the products, before the bias: one number per matrix.
    pub scale: Option<TensorId>,
    /// The bias of the output.
    pub bias: Option<TensorId>,
    /// The input.
    pub input: InputId,
    /// The role.
    pub role: Role,
    /// The layer; `None` for the output.
    pub layer: Option<LayerId>,
    /// Meaning of the weight's third dimension.
    pub grouping: Grouping,
}

/// Meaning of the third dimension of a linear's weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grouping {
    /// None: a single matrix.
    Whole,
    /// This many experts; each reads the tokens routed to it.
    Experts(usize),
    /// This many heads, all reading every token: the absorbed matrices of multi-head latent
    /// attention.
    Heads(usize),
}

impl Grouping {
    /// The number of matrices.
    pub fn matrices(self) -> usize {
        match self {
            Grouping::Whole => 1,
            Grouping::Experts(count) | Grouping::Heads(count) => count,
        }
    }

    /// The number of experts; `None` without experts.
    pub fn experts(self) -> Option<usize> {
        match self {
            Grouping::Experts(count) => Some(count),
            Grouping::Whole | Grouping::Heads(_) => None,
        }
    }
}

/// All tensors and linears of a model.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    tensors: Vec<Entry>,
    /// Sorted by name.
    by_name: Vec<TensorId>,
    linears: Vec<Linear>,
    /// Linears of each input.
    inputs: Vec<Vec<LinearId>>,
    /// Ranges of `linears`, by layer.
    layers: BTreeMap<LayerId, Range<usize>>,
    output: Option<LinearId>,
}

/// Linears of a layer with the same input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Slot {
    /// After the attention norm.
    Attention,
    /// After the norm of a dense feed-forward network.
    Ffn,
    /// Input of routers and shared experts.
    Router,
    /// Input of routed experts.
    Experts,
    /// Input of the smaller experts that groups of experts share.
    Adjugates,
    /// An input with a single reader.
    Own,
}

/// Linears of a layer in the order of the forward pass, by the part of their names after the layer.
const ORDER: &[(&str, Slot)] = &[
    ("altup_router", Slot::Own),
    ("altup_predict_coef", Slot::Own),
    ("attn_q", Slot::Attention),
    ("attn_k", Slot::Attention),
    ("attn_v", Slot::Attention),
    ("attn_qkv", Slot::Attention),
    ("attn_gate", Slot::Attention),
    ("ssm_beta", Slot::Attention),
    ("ssm_alpha", Slot::Attention),
    ("ssm_ba", Slot::Attention),
    ("attn_q_a", Slot::Attention),
    ("attn_kv_a_mqa", Slot::Attention),
    ("indexer.attn_k", Slot::Attention),
    ("indexer.proj", Slot::Attention),
    ("ssm_f_a", Slot::Attention),
    ("ssm_g_a", Slot::Attention),
    ("ssm_f_b", Slot::Own),
    ("ssm_g_b", Slot::Own),
    ("indexer.attn_q_b", Slot::Own),
    ("attn_q_b", Slot::Own),
    ("attn_kv_b", Slot::Own),
    ("attn_k_b", Slot::Own),
    ("attn_v_b", Slot::Own),
    ("attn_output", Slot::Own),
    ("ssm_in", Slot::Own),
    ("ssm_x", Slot::Own),
    ("ssm_dt", Slot::Own),
    ("ssm_out", Slot::Own),
    ("shortconv.in_proj", Slot::Own),
    ("shortconv.out_proj", Slot::Own),
    ("time_mix_w1", Slot::Own),
    ("time_mix_w2", Slot::Own),
    ("time_mix_decay_w1", Slot::Own),
    ("time_mix_decay_w2", Slot::Own),
    ("time_mix_a1", Slot::Own),
    ("time_mix_a2", Slot::Own),
    ("time_mix_v1", Slot::Own),
    ("time_mix_v2", Slot::Own),
    ("time_mix_g1", Slot::Own),
    ("time_mix_g2", Slot::Own),
    ("time_mix_receptance", Slot::Own),
    ("time_mix_key", Slot::Own),
    ("time_mix_value", Slot::Own),
    ("time_mix_gate", Slot::Own),
    ("time_mix_output", Slot::Own),
    ("channel_mix_receptance", Slot::Own),
    ("channel_mix_key", Slot::Own),
    ("channel_mix_value", Slot::Own),
    ("laurel_l", Slot::Own),
    ("laurel_r", Slot::Own),
    ("ffn_gate", Slot::Ffn),
    ("ffn_up", Slot::Ffn),
    ("ffn_down", Slot::Own),
    (ROUTER, Slot::Router),
    ("ffn_latent_down", Slot::Router),
    ("ffn_gate_exps", Slot::Experts),
    ("ffn_up_exps", Slot::Experts),
    ("ffn_gate_up_exps", Slot::Experts),
    ("ffn_down_exps", Slot::Own),
    ("ffn_gate_chexps", Slot::Adjugates),
    ("ffn_up_chexps", Slot::Adjugates),
    ("ffn_down_chexps", Slot::Own),
    ("ffn_latent_up", Slot::Own),
    ("ffn_gate_inp_shexp", Slot::Router),
    ("ffn_gate_shexp", Slot::Router),
    ("ffn_up_shexp", Slot::Router),
    ("ffn_down_shexp", Slot::Own),
    ("altup_correct_coef", Slot::Own),
];

/// The short name of routers.
const ROUTER: &str = "ffn_gate_inp";

/// Suffix of the short names of expert weights.
pub(crate) const OF_EXPERTS: &str = "exps";

/// Lookup tables.
const TABLES: &[&str] = &[
    EMBEDDING,
    role::PER_LAYER_EMBEDDING,
    "position_embd.weight",
    "token_types.weight",
];

/// The token embedding.
pub(crate) const EMBEDDING: &str = "token_embd.weight";
/// The output matrix, if not tied to the token embedding.
pub(crate) const OUTPUT: &str = "output.weight";

/// Candidate names of a weight, by the name of its matrix or norm: a few norms have no suffix.
pub(crate) fn weight_names(stem: &str) -> impl Iterator<Item = Cow<'_, str>> {
    [Cow::Owned(format!("{stem}.weight")), Cow::Borrowed(stem)].into_iter()
}

impl Catalog {
    /// The catalog of a model from the names and dimensions (row length first) of its tensors, in
    /// file order.
    pub(crate) fn new<'n>(
        architecture: &str,
        tensors: impl IntoIterator<Item = (&'n str, [u64; 4])>,
    ) -> Catalog {
        let tensor = |(id, (name, dims)): (usize, (&str, [u64; 4]))| Entry {
            id: TensorId(id as u32),
            name: name.into(),
            dims,
            facts: Facts::new(architecture, name, dims),
            layer: role::block_of(name).map(LayerId),
            is_table: TABLES.contains(&name),
            linear: None,
            label: role::label_range(name),
        };
        let tensors: Vec<_> = tensors.into_iter().enumerate().map(tensor).collect();
        let mut by_name: Vec<_> = tensors.iter().map(|tensor| tensor.id).collect();
        by_name.sort_by_key(|id| &tensors[id.index()].name);
        let mut catalog = Catalog {
            tensors,
            by_name,
            ..Catalog::default()
        };
        let mut places: Vec<_> = catalog.tensors.iter().filter_map(Place::of).collect();
        places.extend(catalog.output_place());
        places.sort_by_key(|place| place.key());
        let mut seen = HashMap::new();
        for place in places {
            catalog.add(place, &mut seen);
        }
        catalog
    }

    /// The weight of the output: the output matrix if present, otherwise the token embedding.
    fn output_place(&self) -> Option<Place> {
        let named = |name| self.tensor_named(name);
        let tensor = named(OUTPUT).or_else(|| named(EMBEDDING))?;
        Some(Place {
            layer: None,
            order: 0,
            slot: Slot::Own,
            tensor,
        })
    }

    fn add(&mut self, place: Place, seen: &mut HashMap<Shared, InputId>) {
        let id = LinearId(self.linears.len() as u32);
        let tensor = &self.tensors[place.tensor.index()];
        let Entry { dims, layer, .. } = *tensor;
        // In a damaged file, rows of a different length cannot share an input.
        let shared = Shared {
            layer,
            slot: place.slot,
            columns: dims[0],
        };
        let input = match seen.get(&shared).filter(|_| place.slot != Slot::Own) {
            Some(input) => *input,
            None => {
                let input = InputId(self.inputs.len() as u32);
                self.inputs.push(Vec::new());
                seen.insert(shared, input);
                input
            }
        };
        let linear = Linear {
            id,
            tensor: place.tensor,
            scale: self.scale_of(place.tensor),
            bias: role::bias_of(&tensor.name).and_then(|name| self.tensor_named(&name)),
            input,
            role: tensor.facts.role,
            layer,
            grouping: tensor.grouping(),
        };
        match layer {
            Some(layer) => {
                self.layers
                    .entry(layer)
                    .or_insert(id.index()..id.index())
                    .end = id.index() + 1;
            }
            None => self.output = Some(id),
        }
        self.inputs[input.index()].push(id);
        self.linears.push(linear);
        self.tensors[place.tensor.index()].linear = Some(id);
    }

    /// The scale of a linear's products: one number, or one per matrix. None for routers (Gemma 4's
    /// tensor of that name scales the router's input) and tables, whose lookups ignore it.
    fn scale_of(&self, weight: TensorId) -> Option<TensorId> {
        let weight = self.tensor(weight);
        if weight.is_table || &weight.name[weight.label.clone()] == ROUTER {
            return None;
        }
        self.tensor_named(&role::scale_of(&weight.name)?)
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[Entry] {
        &self.tensors
    }

    /// A tensor.
    pub fn tensor(&self, id: TensorId) -> &Entry {
        &self.tensors[id.index()]
    }

    /// The tensor of this name.
    pub fn tensor_named(&self, name: &str) -> Option<TensorId> {
        let name_of = |id: &TensorId| &*self.tensors[id.index()].name;
        let found = self.by_name.binary_search_by(|id| name_of(id).cmp(name));
        found.ok().map(|at| self.by_name[at])
    }

    /// The weight of a matrix or norm of this name.
    pub fn weight_of(&self, stem: &str) -> Option<&Entry> {
        let id = weight_names(stem).find_map(|name| self.tensor_named(&name))?;
        Some(self.tensor(id))
    }

    /// The role of the tensor of this name.
    pub fn role_named(&self, name: &str) -> Role {
        self.tensor_named(name)
            .map_or(Role::Other, |id| self.tensor(id).facts.role)
    }

    /// The tensors in llama-quantize's order: those outside layers first, then by layer, each
    /// sorted by name.
    pub fn quantizer_order(&self) -> Vec<TensorId> {
        let mut all = self.by_name.clone();
        all.sort_by_key(|id| self.tensor(*id).facts.layer.unwrap_or(-1));
        all
    }

    /// All linears, in model order.
    pub fn linears(&self) -> &[Linear] {
        &self.linears
    }

    /// A linear.
    pub(crate) fn linear(&self, id: LinearId) -> &Linear {
        &self.linears[id.index()]
    }

    /// The linear with this weight tensor.
    pub fn linear_of(&self, tensor: TensorId) -> Option<&Linear> {
        self.tensor(tensor).linear.map(|id| self.linear(id))
    }

    /// The linear with a weight of this name.
    pub fn linear_named(&self, name: &str) -> Option<&Linear> {
        self.linear_of(self.tensor_named(name)?)
    }

    /// The weight of a linear.
    pub fn weight(&self, id: LinearId) -> &Entry {
        self.tensor(self.linear(id).tensor)
    }

    /// The output linear.
    pub fn output(&self) -> Option<&Linear> {
        self.output.map(|id| self.linear(id))
    }

    /// True if the token embedding is also the output matrix.
    pub fn is_tied(&self) -> bool {
        self.output()
            .is_some_and(|output| self.tensor(output.tensor).is_table)
    }

    /// The token embedding.
    pub fn embedding(&self) -> Option<&Entry> {
        self.tensor_named(EMBEDDING).map(|id| self.tensor(id))
    }

    /// The numbers of the layers that have linears, in ascending order.
    pub fn layers(&self) -> impl Iterator<Item = LayerId> {
        self.layers.keys().copied()
    }

    /// The linears of a layer, in the order of the forward pass.
    pub fn linears_of(&self, layer: LayerId) -> &[Linear] {
        self.layers
            .get(&layer)
            .map_or(&[], |range| &self.linears[range.clone()])
    }

    /// The number of inputs; their ids are 0 to this number.
    pub fn inputs(&self) -> usize {
        self.inputs.len()
    }

    /// The linears that read an input, in model order.
    pub fn readers_of(&self, input: InputId) -> &[LinearId] {
        &self.inputs[input.index()]
    }

    /// True if llama-imatrix collects the input of a linear: linears of layers, and with
    /// `process_output` (its `--process-output`) an untied output matrix.
    pub fn in_imatrix(&self, id: LinearId, process_output: bool) -> bool {
        self.linear(id).layer.is_some() || process_output && !self.is_tied()
    }

    /// True if the input Hessian of a linear is collected: linears of layers except those that the
    /// quantizer skips by name, such as routers; the output with `with_output`.
    pub fn in_hessians(&self, id: LinearId, with_output: bool) -> bool {
        match self.linear(id).layer {
            Some(_) => !self.weight(id).facts.left_alone,
            None => with_output,
        }
    }
}

impl Entry {
    /// A short name: `output`, `token_embd`, or the name without its layer and `.weight`.
    pub fn label(&self) -> &str {
        &self.name[self.label.clone()]
    }

    /// Weights per row.
    pub fn row_len(&self) -> u64 {
        self.dims[0]
    }

    /// The number of matrices, each with its own importance weights.
    pub fn matrices(&self) -> u64 {
        self.dims[2]
    }

    /// True with more than one dimension.
    pub fn is_matrix(&self) -> bool {
        self.dims[1..].iter().any(|dim| *dim > 1)
    }

    fn grouping(&self) -> Grouping {
        let count =
            usize::try_from(self.dims[2].saturating_mul(self.dims[3])).unwrap_or(usize::MAX);
        match self.label().ends_with(OF_EXPERTS) {
            true => Grouping::Experts(count),
            false if count > 1 => Grouping::Heads(count),
            false => Grouping::Whole,
        }
    }
}

/// Position of a linear in model order.
struct Place {
    layer: Option<LayerId>,
    /// Within the layer.
    order: usize,
    slot: Slot,
    tensor: TensorId,
}

/// Identity of a shared input.
#[derive(PartialEq, Eq, Hash)]
struct Shared {
    layer: Option<LayerId>,
    slot: Slot,
    columns: u64,
}

impl Place {
    /// The place of a layer's tensor, if it is the weight of a linear: listed in [`ORDER`], or
    /// quantizable.
    fn of(tensor: &Entry) -> Option<Place> {
        let layer = Some(tensor.layer?);
        let known = ORDER.iter().position(|(label, _)| tensor.label() == *label);
        let (order, slot) = match known.filter(|_| role::is_weight(&tensor.name)) {
            Some(order) => (order, ORDER[order].1),
            None if tensor.facts.quantizable => (ORDER.len(), Slot::Own),
            None => return None,
        };
        Some(Place {
            layer,
            order,
            slot,
            tensor: tensor.id,
        })
    }

    /// By layer, the output last; weights of unknown names in file order.
    fn key(&self) -> impl Ord + use<> {
        (self.layer.is_none(), self.layer, self.order, self.tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(tensors: &[(&str, &[u64])]) -> Catalog {
        let four = |dims: &[u64]| std::array::from_fn(|i| dims.get(i).copied().unwrap_or(1));
        Catalog::new(
            "llama",
            tensors.iter().map(|(name, dims)| (*name, four(dims))),
        )
    }

    /// A dense layer, a layer with experts, embedding and output, in scrambled order.
    const MODEL: &[(&str, &[u64])] = &[
        ("output.weight", &[64, 100]),
        ("token_embd.weight", &[64, 100]),
        ("output_norm.weight", &[64]),
        ("rope_freqs.weight", &[8]),
        ("blk.1.ffn_down_exps.weight", &[32, 64, 4]),
        ("blk.1.ffn_gate_exps.weight", &[64, 32, 4]),
        ("blk.1.ffn_up_exps.weight", &[64, 32, 4]),
        ("blk.1.ffn_gate_inp.weight", &[64, 4]),
        ("blk.1.ffn_gate_inp_shexp.weight", &[64]),
        ("blk.1.ffn_gate_shexp.weight", &[64, 48]),
        ("blk.1.ffn_up_shexp.weight", &[64, 48]),
        ("blk.1.ffn_down_shexp.weight", &[48, 64]),
        ("blk.1.attn_qkv.weight", &[64, 128]),
        ("blk.1.attn_output.weight", &[64, 64]),
        ("blk.0.attn_norm.weight", &[64]),
        ("blk.0.attn_v.weight", &[64, 32]),
        ("blk.0.attn_k.weight", &[64, 32]),
        ("blk.0.attn_q.bias", &[64]),
        ("blk.0.attn_q.weight", &[64, 64]),
        ("blk.0.attn_output.weight", &[64, 64]),
        ("blk.0.ffn_up.weight", &[64, 96]),
        ("blk.0.ffn_gate.weight", &[64, 96]),
        ("blk.0.ffn_down.weight", &[96, 64]),
    ];

    #[test]
    fn linears_in_model_order_share_inputs() {
        let catalog = catalog(MODEL);
        let rows: Vec<_> = catalog
            .linears()
            .iter()
            .map(|l| {
                (
                    catalog.weight(l.id).label(),
                    l.layer.map(|l| l.0),
                    l.input.0,
                    l.grouping,
                )
            })
            .collect();
        use Grouping::{Experts, Whole};
        let expected = [
            ("attn_q", Some(0), 0, Whole),
            ("attn_k", Some(0), 0, Whole),
            ("attn_v", Some(0), 0, Whole),
            ("attn_output", Some(0), 1, Whole),
            ("ffn_gate", Some(0), 2, Whole),
            ("ffn_up", Some(0), 2, Whole),
            ("ffn_down", Some(0), 3, Whole),
            ("attn_qkv", Some(1), 4, Whole),
            ("attn_output", Some(1), 5, Whole),
            ("ffn_gate_inp", Some(1), 6, Whole),
            ("ffn_gate_exps", Some(1), 7, Experts(4)),
            ("ffn_up_exps", Some(1), 7, Experts(4)),
            ("ffn_down_exps", Some(1), 8, Experts(4)),
            ("ffn_gate_inp_shexp", Some(1), 6, Whole),
            ("ffn_gate_shexp", Some(1), 6, Whole),
            ("ffn_up_shexp", Some(1), 6, Whole),
            ("ffn_down_shexp", Some(1), 9, Whole),
            ("output", None, 10, Whole),
        ];
        assert_eq!(rows, expected);
        assert_eq!(catalog.inputs(), 11);
        for linear in catalog.linears() {
            assert!(catalog.readers_of(linear.input).contains(&linear.id));
            assert_eq!(catalog.linear_of(linear.tensor), Some(linear));
        }
        assert_eq!(
            catalog.layers().collect::<Vec<_>>(),
            [LayerId(0), LayerId(1)]
        );
        assert_eq!(catalog.linears_of(LayerId(0)).len(), 7);
        assert_eq!(catalog.linears_of(LayerId(7)), []);
        let bias = catalog.linears()[0].bias.unwrap();
        assert_eq!(&*catalog.tensor(bias).name, "blk.0.attn_q.bias");
    }

    #[test]
    fn tensors_are_found_by_name() {
        let catalog = catalog(MODEL);
        for (number, (name, _)) in MODEL.iter().enumerate() {
            assert_eq!(
                catalog.tensor_named(name).map(TensorId::index),
                Some(number)
            );
        }
        assert_eq!(catalog.tensor_named("output"), None);
    }

    #[test]
    fn output_defaults_to_the_embedding() {
        for (tensors, output, tied) in [
            (&MODEL[..2], Some("output.weight"), false),
            (&MODEL[1..2], Some("token_embd.weight"), true),
            (&MODEL[2..3], None, false),
        ] {
            let catalog = catalog(tensors);
            let name = catalog.output().map(|l| &*catalog.tensor(l.tensor).name);
            assert_eq!((name, catalog.is_tied()), (output, tied));
        }
        assert!(catalog(MODEL).embedding().unwrap().is_table);
        assert_eq!(catalog(MODEL).embedding().unwrap().linear, None);
    }

    #[test]
    fn collected_inputs_of_imatrix_and_hessians() {
        for (tensors, label, imatrix, hessians) in [
            (MODEL, "attn_q", [true, true], [true, true]),
            (MODEL, "ffn_gate_inp", [true, true], [false, false]),
            (MODEL, "ffn_gate_inp_shexp", [true, true], [true, true]),
            (MODEL, "ffn_up_exps", [true, true], [true, true]),
            (MODEL, "output", [false, true], [false, true]),
            (&MODEL[1..], "token_embd", [false, false], [false, true]),
        ] {
            let catalog = catalog(tensors);
            let linear = catalog
                .linears()
                .iter()
                .find(|l| catalog.weight(l.id).label() == label);
            let id = linear.unwrap().id;
            let both = [false, true];
            assert_eq!(
                both.map(|output| catalog.in_imatrix(id, output)),
                imatrix,
                "{label}"
            );
            assert_eq!(
                both.map(|output| catalog.in_hessians(id, output)),
                hessians,
                "{label}"
            );
        }
    }

    #[test]
    fn third_dimension_is_experts_or_heads() {
        for (name, dims, grouping) in [
            (
                "blk.0.ffn_up_exps.weight",
                [64, 32, 8],
                Grouping::Experts(8),
            ),
            (
                "blk.0.ffn_up_exps.weight",
                [64, 32, 1],
                Grouping::Experts(1),
            ),
            ("blk.0.attn_k_b.weight", [64, 32, 16], Grouping::Heads(16)),
            ("blk.0.attn_v_b.weight", [64, 32, 16], Grouping::Heads(16)),
            ("blk.0.attn_q.weight", [64, 32, 1], Grouping::Whole),
        ] {
            let catalog = catalog(&[(name, &dims)]);
            assert_eq!(catalog.linears()[0].grouping, grouping, "{name}");
        }
    }

    #[test]
    fn damaged_files_and_unknown_names() {
        let catalog = catalog(&[
            ("blk.0.attn_q.weight", &[64, 64]),
            ("blk.0.attn_k.weight", &[32, 64]),
            ("blk.0.some_proj.weight", &[64, 64]),
            ("blk.0.ssm_conv1d.weight", &[4, 64]),
            ("blk.4294967295.attn_q.weight", &[64, 64]),
            ("blk.4294967296.attn_q.weight", &[64, 64]),
            ("blk.x.attn_q.weight", &[64, 64]),
            ("blk..weight", &[64, 64]),
            ("", &[]),
        ]);
        let inputs: Vec<_> = catalog.linears().iter().map(|l| l.input.0).collect();
        assert_eq!(
            inputs,
            [0, 1, 2, 3],
            "rows of another length are another input"
        );
        assert_eq!(
            catalog.layers().collect::<Vec<_>>(),
            [LayerId(0), LayerId(u32::MAX)]
        );
    }

    #[test]
    fn quantizer_order_is_by_layer_and_name() {
        let catalog = catalog(&[
            ("blk.10.a", &[]),
            ("blk.2.b", &[]),
            ("blk.2.a", &[]),
            ("output.weight", &[]),
            ("blk.-3.a", &[]),
            ("a", &[]),
        ]);
        let order: Vec<_> = catalog
            .quantizer_order()
            .iter()
            .map(|id| &*catalog.tensor(*id).name)
            .collect();
        let expected = [
            "blk.-3.a",
            "a",
            "output.weight",
            "blk.2.a",
            "blk.2.b",
            "blk.10.a",
        ];
        assert_eq!(order, expected);
    }

    #[test]
    fn short_names() {
        for (name, label) in [
            ("output.weight", "output"),
            ("token_embd.weight", "token_embd"),
            ("per_layer_token_embd.weight", "token_embd"),
            ("blk.3.ffn_gate_exps.weight", "ffn_gate_exps"),
            ("blk.3.attn_q.bias", "attn_q.bias"),
            ("blk.3", "blk.3"),
            ("output_norm.weight", "output_norm"),
        ] {
            assert_eq!(
                catalog(&[(name, &[2, 2])]).tensors()[0].label(),
                label,
                "{name}"
            );
        }
    }
}
