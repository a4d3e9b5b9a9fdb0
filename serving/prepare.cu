// Before every network call: gathers the rows of the batch and draws their noise, on the device.
//
// One block of threads per network row. The noise is that of diffusion/noise.py to the bit: integer
// operations, one exact conversion, one rounded multiplication, one rounded addition.
// `control` is serving.device.Control, where its layout is described.

struct Words {
  unsigned int at[4];
};

__device__ Words philox4x32_10(unsigned int c0, unsigned int c1, unsigned int c2, unsigned int c3,
                               unsigned int k0, unsigned int k1) {
  for (int round = 0; round < 10; ++round) {
    const unsigned long long p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
    const unsigned int n0 = (unsigned int)(p1 >> 32) ^ c1 ^ k0;
    const unsigned int n2 = (unsigned int)(p0 >> 32) ^ c3 ^ k1;
    c0 = n0, c1 = (unsigned int)p1, c2 = n2, c3 = (unsigned int)p0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return Words{{c0, c1, c2, c3}};
}

__device__ float normal(unsigned int bits, const float* value, const float* slope) {
  const float scaled_p = __fadd_rn(__uint2float_rn(bits & 0x7FFFFFFFu), 0.5f);
  const unsigned int pattern = __float_as_uint(scaled_p);
  const unsigned int segment = (pattern >> 15) - (126u << 8);  // SEGMENT_BITS is 8
  const float offset = __uint2float_rn(pattern & 0x7FFFu);
  const float z = __fadd_rn(__fmul_rn(slope[segment], offset), value[segment]);
  return __uint_as_float(__float_as_uint(z) | (bits & 0x80000000u));
}

extern "C" __global__ void prepare(const long long* control, int stride, int image_size,
                                   int emb_width, const float* x, const float* x_0,
                                   const float* table, const float* value, const float* slope,
                                   float* x_t, float* emb, float* x_0_previous, float* noise) {
  const long long row = blockIdx.x;
  const long long source = control[row];  // < 0: x_T is drawn here
  const long long emb_row = control[stride + row];
  const unsigned long long seed = (unsigned long long)control[3 * stride + row];
  const unsigned int index = (unsigned int)control[4 * stride + row];
  const unsigned int step = (unsigned int)control[5 * stride + row];
  const float* numbers = (const float*)(control + 6 * stride);
  const bool noisy = numbers[6 * stride + row] != 0.0f;
  const unsigned int low = (unsigned int)seed, high = (unsigned int)(seed >> 32);

  for (int i = threadIdx.x; i < emb_width; i += blockDim.x) {
    emb[row * emb_width + i] = table[emb_row * emb_width + i];
  }
  for (int block = threadIdx.x; 4 * block < image_size; block += blockDim.x) {
    Words initial, added;
    if (source < 0) initial = philox4x32_10(block, 0xFFFFFFFFu, index, 0, low, high);
    if (noisy) added = philox4x32_10(block, step, index, 0, low, high);
    for (int word = 0; word < 4 && 4 * block + word < image_size; ++word) {
      const long long to = row * image_size + 4 * block + word;
      const long long from = source * image_size + 4 * block + word;
      x_t[to] = source < 0 ? normal(initial.at[word], value, slope) : x[from];
      x_0_previous[to] = source < 0 ? 0.0f : x_0[from];
      if (noisy) noise[to] = normal(added.at[word], value, slope);
    }
  }
}
