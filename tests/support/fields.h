// The fields of an aggregate, one after another: what lets a test look into the arguments of any operation.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

namespace lamina::test {

struct AnyField {
  template <class T>
  operator T() const;  // never called
};

template <class T, size_t... I>
constexpr bool takes_fields(std::index_sequence<I...>) {
  return requires {
    T{(static_cast<void>(I), AnyField{})...};
  };
}
template <class T, size_t n = 24>
constexpr size_t num_fields() {
  static_assert(n > 0, "not an aggregate of at most 24 fields");
  if constexpr (takes_fields<T>(std::make_index_sequence<n>()))
    return n;
  else
    return num_fields<T, n - 1>();
}

#define LAMINA_FIELDS(n, ...)        \
  else if constexpr (count == (n)) { \
    auto& [__VA_ARGS__] = aggregate; \
    visit_all(visit, __VA_ARGS__);   \
  }

template <class Visit, class... Fields>
void visit_all(const Visit& visit, Fields&... fields) {
  (visit(fields), ...);
}

// visit(field) for each field of the aggregate.
template <class T, class Visit>
void for_each_field(T& aggregate, const Visit& visit) {
  constexpr size_t count = num_fields<std::remove_const_t<T>>();
  if constexpr (count == 0) {
  }
  LAMINA_FIELDS(1, a)
  LAMINA_FIELDS(2, a, b)
  LAMINA_FIELDS(3, a, b, c)
  LAMINA_FIELDS(4, a, b, c, d)
  LAMINA_FIELDS(5, a, b, c, d, e)
  LAMINA_FIELDS(6, a, b, c, d, e, f)
  LAMINA_FIELDS(7, a, b, c, d, e, f, g)
  LAMINA_FIELDS(8, a, b, c, d, e, f, g, h)
  LAMINA_FIELDS(9, a, b, c, d, e, f, g, h, i)
  LAMINA_FIELDS(10, a, b, c, d, e, f, g, h, i, j)
  LAMINA_FIELDS(11, a, b, c, d, e, f, g, h, i, j, k)
  LAMINA_FIELDS(12, a, b, c, d, e, f, g, h, i, j, k, l)
  LAMINA_FIELDS(13, a, b, c, d, e, f, g, h, i, j, k, l, m)
  LAMINA_FIELDS(14, a, b, c, d, e, f, g, h, i, j, k, l, m, n)
  LAMINA_FIELDS(15, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o)
  LAMINA_FIELDS(16, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)
  LAMINA_FIELDS(17, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q)
  LAMINA_FIELDS(18, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r)
  LAMINA_FIELDS(19, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s)
  LAMINA_FIELDS(20, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t)
  else static_assert(count <= 20, "more fields than are written out");
}
#undef LAMINA_FIELDS

}  // namespace lamina::test
