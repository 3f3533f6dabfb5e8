// Sums of squares of the inputs of linears while llama.cpp runs, for the reference programs of scripts/.
#pragma once

#include "ggml.h"

#include <cstdio>
#include <cstdint>
#include <cstring>
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

// Called before and after each operation of a layer.
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

// One line per linear: its name, its number of tokens (one per expert of a mixture), a bar, and the sums (one per column of each
// matrix).
static void print_sums() {
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
}
