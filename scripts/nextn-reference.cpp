// Sums of squares of the inputs of all linears in llama.cpp's multi-token prediction block, run over whole chunks as a draft model
// runs over a prompt: position k reads its token and the activations of position k - 1, the first one zeros.
//
//   nextn-reference MODEL TOKENS CONTEXT > SUMS
//
// TOKENS is a file of ids; every CONTEXT of them are a chunk. One line per linear: its name, its number of tokens (one
// per expert of a mixture), a bar, and the sums (one per column of each matrix). Used by scripts/parity-nextn.py.
#include "common.h"
#include "ggml.h"
#include "llama.h"
#include "../src/llama-ext.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

struct sums {
    std::vector<long long> tokens;
    std::vector<double> squares;
};

static std::map<std::string, sums> all;

static const float * row_of(const ggml_tensor * x, int64_t i1, int64_t i2, int64_t i3) {
    return (const float *) ((const char *) x->data + i1 * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3]);
}

static void add(double * to, const float * row, int64_t columns) {
    for (int64_t j = 0; j < columns; ++j) {
        to[j] += (double) row[j] * row[j];
    }
}

// Called before and after each operation of the block.
static bool collect(ggml_tensor * t, bool ask, void *) {
    const bool is_of_experts = t->op == GGML_OP_MUL_MAT_ID;
    const ggml_tensor * weights = t->src[0], * x = t->src[1];
    if ((!is_of_experts && t->op != GGML_OP_MUL_MAT) || strncmp(weights->name, "blk.", 4) != 0 || x->type != GGML_TYPE_F32) {
        return !ask;
    }
    if (ask) {
        return true;
    }
    const int64_t columns = x->ne[0], matrices = weights->ne[2] * weights->ne[3];
    sums & s = all[weights->name];
    s.squares.resize(columns * matrices);
    s.tokens.resize(is_of_experts ? matrices : 1);
    if (is_of_experts) {
        const ggml_tensor * ids = t->src[2];
        for (int64_t token = 0; token < ids->ne[1]; ++token) {
            for (int64_t k = 0; k < ids->ne[0]; ++k) {
                const int32_t expert = *(const int32_t *) ((const char *) ids->data + token * ids->nb[1] + k * ids->nb[0]);
                add(s.squares.data() + expert * columns, row_of(x, k % x->ne[1], token, 0), columns);
                s.tokens[expert]++;
            }
        }
        return true;
    }
    for (int64_t i3 = 0; i3 < x->ne[3]; ++i3) {
        for (int64_t i2 = 0; i2 < x->ne[2]; ++i2) {
            const int64_t matrix = i3 % weights->ne[3] * weights->ne[2] + i2 % weights->ne[2];
            for (int64_t i1 = 0; i1 < x->ne[1]; ++i1) {
                add(s.squares.data() + matrix * columns, row_of(x, i1, i2, i3), columns);
            }
        }
    }
    s.tokens[0] += ggml_nrows(x) / matrices;
    return true;
}

static void fail(const char * what) {
    fprintf(stderr, "nextn-reference: %s\n", what);
    exit(1);
}

int main(int argc, char ** argv) {
    if (argc != 4) {
        fail("MODEL TOKENS CONTEXT");
    }
    const int context = atoi(argv[3]);
    std::vector<llama_token> tokens;
    std::ifstream file(argv[2]);
    for (llama_token token; file >> token;) {
        tokens.push_back(token);
    }
    llama_backend_init();
    llama_model_params of_model = llama_model_default_params();
    // Weights as they are in the file, which the callback can read.
    of_model.use_extra_bufts = false;
    of_model.load_mtp = true;
    llama_model * model = llama_model_load_from_file(argv[1], of_model);
    if (!model || llama_model_n_layer_nextn(model) == 0) {
        fail("the model has no such block");
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = context;
    params.n_threads = params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = GGML_TYPE_F32;
    llama_context * target = llama_init_from_model(model, params);
    params.ctx_type = LLAMA_CONTEXT_TYPE_MTP;
    params.cb_eval = collect;
    llama_context * draft = llama_init_from_model(model, params);
    if (!target || !draft) {
        fail("no context");
    }
    llama_set_embeddings_nextn(target, true, /* masked */ false);
    llama_set_embeddings_nextn(draft, true, /* masked */ true);
    const int width = llama_model_n_embd_out(model);
    const std::vector<float> zeros(width, 0.0f);
    common_batch of_target(target), of_draft(draft);
    for (size_t first = 0; first + context <= tokens.size(); first += context) {
        llama_memory_clear(llama_get_memory(target), true);
        llama_memory_clear(llama_get_memory(draft), true);
        of_target.clear();
        of_draft.clear();
        for (int k = 0; k < context; ++k) {
            of_target.add(tokens[first + k], k, 0, true);
        }
        if (llama_process(target, LLAMA_PROCESS_TYPE_DECODE, of_target.get()) != 0) {
            fail("the model does not run");
        }
        const float * hidden = llama_get_embeddings_nextn(target);
        for (int k = 0; k < context; ++k) {
            const int index = of_draft.add(tokens[first + k], k, 0, true);
            const float * before = k == 0 ? zeros.data() : hidden + (size_t) (k - 1) * width;
            of_draft.set_embd(index, { before, 1, (size_t) width });
        }
        if (llama_process(draft, LLAMA_PROCESS_TYPE_DECODE, of_draft.get()) != 0) {
            fail("the block does not run");
        }
    }
    for (const auto & [name, s] : all) {
        printf("%s", name.c_str());
        for (long long count : s.tokens) {
            printf(" %lld", count);
        }
        printf(" |");
        for (double square : s.squares) {
            printf(" %.17g", square);
        }
        printf("\n");
    }
    llama_free(draft);
    llama_free(target);
    llama_model_free(model);
}
