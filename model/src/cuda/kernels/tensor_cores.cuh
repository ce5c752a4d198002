// Products of 16x16 by 16x8 matrices of bf16, summed in f32, by a warp, and how their parts reach its lanes. With g = lane / 4 and t = lane % 4,
// a lane holds (PTX ISA, mma.m16n8k16 and ldmatrix):
//   sum    rows g, g, g + 8, g + 8 at columns 2t, 2t + 1, 2t, 2t + 1;
//   left   pairs of columns 2t and 2t + 8 of rows g and g + 8, in the order (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8);
//   right  pairs of rows 2t and 2t + 8 of column g.
#pragma once

#include "numbers.cuh"

// sum += left right
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};\n"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

// Four 8x8 matrices from shared memory: lanes 8m..8m + 7 point to the rows of matrix m, and each lane receives the pair at columns 2t of row g.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(uint32_t(__cvta_generic_to_shared(row)))
                 : "memory");
}

// The same, transposed: each lane receives the pair at rows 2t of column g.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(uint32_t(__cvta_generic_to_shared(row)))
                 : "memory");
}
