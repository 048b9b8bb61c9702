// CUDA's small vector types.
#pragma once

#define LAMINA_EMULATOR_VECTORS(base, name)                               \
  struct name##1 {                                                        \
    base x;                                                               \
  };                                                                      \
  struct alignas(2 * sizeof(base)) name##2 {                              \
    base x, y;                                                            \
  };                                                                      \
  struct name##3 {                                                        \
    base x, y, z;                                                         \
  };                                                                      \
  struct alignas(4 * sizeof(base) < 16 ? 4 * sizeof(base) : 16) name##4 { \
    base x, y, z, w;                                                      \
  };                                                                      \
  constexpr name##1 make_##name##1(base x) {                              \
    return {x};                                                           \
  }                                                                       \
  constexpr name##2 make_##name##2(base x, base y) {                      \
    return {x, y};                                                        \
  }                                                                       \
  constexpr name##3 make_##name##3(base x, base y, base z) {              \
    return {x, y, z};                                                     \
  }                                                                       \
  constexpr name##4 make_##name##4(base x, base y, base z, base w) {      \
    return {x, y, z, w};                                                  \
  }

LAMINA_EMULATOR_VECTORS(signed char, char)
LAMINA_EMULATOR_VECTORS(unsigned char, uchar)
LAMINA_EMULATOR_VECTORS(short, short)
LAMINA_EMULATOR_VECTORS(unsigned short, ushort)
LAMINA_EMULATOR_VECTORS(int, int)
LAMINA_EMULATOR_VECTORS(unsigned, uint)
LAMINA_EMULATOR_VECTORS(long long, longlong)
LAMINA_EMULATOR_VECTORS(unsigned long long, ulonglong)
LAMINA_EMULATOR_VECTORS(float, float)
LAMINA_EMULATOR_VECTORS(double, double)
#undef LAMINA_EMULATOR_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};
