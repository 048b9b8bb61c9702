#include <hdf5.h>

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

#include "core/base/error.h"
#include "core/io/hdf5.h"
#include "core/io/hdf5_detail.h"

namespace lamina::io {

namespace fs = std::filesystem;

namespace {

hid_t file_type(ElementType type) {
  switch (type) {
    case ElementType::u8:
      return H5T_STD_U8LE;
    case ElementType::u16:
      return H5T_STD_U16LE;
    case ElementType::u32:
      return H5T_STD_U32LE;
    case ElementType::u64:
      return H5T_STD_U64LE;
    case ElementType::i32:
      return H5T_STD_I32LE;
    case ElementType::i64:
      return H5T_STD_I64LE;
    case ElementType::f32:
      return H5T_IEEE_F32LE;
    case ElementType::f64:
      return H5T_IEEE_F64LE;
  }
  LAMINA_CHECK(false, "element type {}", static_cast<int>(type));
  return -1;
}

hid_t memory_type(ElementType type) {
  switch (type) {
    case ElementType::u8:
      return H5T_NATIVE_UINT8;
    case ElementType::u16:
      return H5T_NATIVE_UINT16;
    case ElementType::u32:
      return H5T_NATIVE_UINT32;
    case ElementType::u64:
      return H5T_NATIVE_UINT64;
    case ElementType::i32:
      return H5T_NATIVE_INT32;
    case ElementType::i64:
      return H5T_NATIVE_INT64;
    case ElementType::f32:
      return H5T_NATIVE_FLOAT;
    case ElementType::f64:
      return H5T_NATIVE_DOUBLE;
  }
  LAMINA_CHECK(false, "element type {}", static_cast<int>(type));
  return -1;
}

std::vector<hsize_t> to_extents(std::span<const int64_t> shape) {
  std::vector<hsize_t> extents;
  for (const int64_t extent : shape) {
    LAMINA_CHECK(extent >= 0, "extent {}", extent);
    extents.push_back(static_cast<hsize_t>(extent));
  }
  return extents;
}

int64_t product(std::span<const int64_t> shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

Hdf5Id make_space(std::span<const int64_t> shape, const fs::path& path, const std::string& object) {
  const std::vector<hsize_t> extents = to_extents(shape);
  const hid_t space = extents.empty() ? H5Screate(H5S_SCALAR)
                                      : H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr);
  return Hdf5Id(space, H5Sclose, path, object, "can't make a data space");
}

struct Box {
  std::vector<hsize_t> start, count;
  int64_t num_elements;
};

// The flat range [begin, end) of a row-major array as boxes, in the order of the elements: along each axis a partial
// first slice, the whole slices, and a partial last slice, the partial ones cut the same way along the next axis.
void flat_range_to_boxes(std::span<const int64_t> shape, int64_t begin, int64_t end, std::vector<hsize_t>& prefix,
                         std::vector<Box>& boxes) {
  if (begin >= end) return;
  const size_t axis = prefix.size();
  const auto whole_slices = [&](int64_t first, int64_t last) {  // [first, last) along `axis`, everything behind it
    Box box{prefix, std::vector<hsize_t>(prefix.size(), 1), 1};
    box.start.push_back(static_cast<hsize_t>(first));
    box.count.push_back(static_cast<hsize_t>(last - first));
    for (size_t i = axis + 1; i < shape.size(); ++i) {
      box.start.push_back(0);
      box.count.push_back(static_cast<hsize_t>(shape[i]));
    }
    for (const hsize_t count : box.count) box.num_elements *= static_cast<int64_t>(count);
    boxes.push_back(std::move(box));
  };
  const auto partial_slice = [&](int64_t slice, int64_t from, int64_t to) {
    prefix.push_back(static_cast<hsize_t>(slice));
    flat_range_to_boxes(shape, from, to, prefix, boxes);
    prefix.pop_back();
  };
  const int64_t stride = product(shape.subspan(axis + 1));
  int64_t first = begin / stride;
  const int64_t last = end / stride;
  if (begin % stride != 0) {
    partial_slice(first, begin % stride, std::min(stride, end - first * stride));
    ++first;
  }
  if (first < last) whole_slices(first, last);
  if (first <= last && end % stride != 0) partial_slice(last, 0, end % stride);
}

std::vector<Box> flat_range_to_boxes(std::span<const int64_t> shape, int64_t begin, int64_t end) {
  std::vector<hsize_t> prefix;
  std::vector<Box> boxes;
  flat_range_to_boxes(shape, begin, end, prefix, boxes);
  return boxes;
}

Hdf5Id open_dataset(hid_t file, const fs::path& path, const std::string& dataset) {
  return Hdf5Id(H5Dopen2(file, dataset.c_str(), H5P_DEFAULT), H5Dclose, path, dataset, "can't open dataset");
}

std::vector<int64_t> shape_of(hid_t space) {
  std::vector<hsize_t> extents(static_cast<size_t>(std::max(0, H5Sget_simple_extent_ndims(space))));
  if (!extents.empty()) H5Sget_simple_extent_dims(space, extents.data(), nullptr);
  return {extents.begin(), extents.end()};
}

Hdf5Id dataset_properties(const fs::path& path, const std::string& dataset) {
  Hdf5Id properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, path, dataset, "can't set up");
  switch_time_stamps_off(properties, path);
  return properties;
}

// The library would make the groups above a dataset, but with time stamps.
void make_parent_groups(hid_t file, const fs::path& path, const std::string& dataset) {
  for (size_t at = dataset.find('/', 1); at != std::string::npos; at = dataset.find('/', at + 1)) {
    const std::string group = dataset.substr(0, at);
    if (H5Lexists(file, group.c_str(), H5P_DEFAULT) > 0) continue;
    const Hdf5Id properties(H5Pcreate(H5P_GROUP_CREATE), H5Pclose, path, group, "can't set up");
    switch_time_stamps_off(properties, path);
    Hdf5Id id(H5Gcreate2(file, group.c_str(), H5P_DEFAULT, properties, H5P_DEFAULT), H5Gclose, path, group,
              "can't create group");
    id.close_written(path, group, "can't create group");
  }
}

// The library replaces a source it can't open by the fill value without a word. That would turn a lost file into zeros.
void check_virtual_sources(hid_t dataset, const fs::path& path, const std::string& name) {
  const Hdf5Id properties(H5Dget_create_plist(dataset), H5Pclose, path, name, "can't read the layout");
  if (H5Pget_layout(properties) != H5D_VIRTUAL) return;
  size_t num_mappings = 0;
  if (H5Pget_virtual_count(properties, &num_mappings) < 0) fail_hdf5(path, name, "can't read the layout");
  std::set<std::pair<std::string, std::string>> sources;
  const auto text = [&](auto getter, size_t index) {
    const ssize_t length = getter(properties, index, nullptr, 0);
    if (length < 0) fail_hdf5(path, name, "can't read the layout");
    std::string value(static_cast<size_t>(length) + 1, '\0');
    getter(properties, index, value.data(), value.size());
    value.resize(static_cast<size_t>(length));
    return value;
  };
  for (size_t i = 0; i < num_mappings; ++i)
    sources.emplace(text(H5Pget_virtual_filename, i), text(H5Pget_virtual_dsetname, i));
  for (const auto& [file_name, dataset_name] : sources) {
    if (file_name == ".") continue;
    const fs::path source_path = path.parent_path() / file_name;
    const Hdf5Id properties_of_access = file_access_properties(source_path);
    const Hdf5Id file(H5Fopen(source_path.c_str(), H5F_ACC_RDONLY, properties_of_access), H5Fclose, source_path, "",
                      fmt::format("can't open this part of {} in {}", name, path.string()));
    open_dataset(file, source_path, dataset_name);
  }
}

}  // namespace

int64_t size_of(ElementType type) {
  switch (type) {
    case ElementType::u8:
      return 1;
    case ElementType::u16:
      return 2;
    case ElementType::u32:
    case ElementType::i32:
    case ElementType::f32:
      return 4;
    case ElementType::u64:
    case ElementType::i64:
    case ElementType::f64:
      return 8;
  }
  LAMINA_CHECK(false, "element type {}", static_cast<int>(type));
  return 0;
}

int64_t DatasetInfo::num_elements() const {
  return product(shape);
}

DatasetInfo Hdf5File::info(const std::string& dataset) const {
  const Hdf5Lock lock;
  const Hdf5Id id = open_dataset(handle_, path_, dataset);
  const Hdf5Id type(H5Dget_type(id), H5Tclose, path_, dataset, "can't read the element type");
  const Hdf5Id space(H5Dget_space(id), H5Sclose, path_, dataset, "can't read the shape");
  const H5T_class_t kind = H5Tget_class(type);
  const size_t size = H5Tget_size(type);
  if (kind == H5T_FLOAT && (size == 4 || size == 8))
    return {size == 4 ? ElementType::f32 : ElementType::f64, shape_of(space)};
  if (kind == H5T_INTEGER) {
    const bool is_signed = H5Tget_sign(type) == H5T_SGN_2;
    if (size == 4) return {is_signed ? ElementType::i32 : ElementType::u32, shape_of(space)};
    if (size == 8) return {is_signed ? ElementType::i64 : ElementType::u64, shape_of(space)};
    if (size == 2 && !is_signed) return {ElementType::u16, shape_of(space)};
    if (size == 1 && !is_signed) return {ElementType::u8, shape_of(space)};
  }
  throw Error(
      "{}: {}: found an element type of {} bytes that Lamina doesn't read, expected an unsigned integer, int32, "
      "int64, float32 or float64",
      path_.string(), dataset, size);
}

void Hdf5File::write(const std::string& dataset, ElementType type, std::span<const int64_t> shape, const void* data) {
  const Hdf5Lock lock;
  const Hdf5Id space = make_space(shape, path_, dataset);
  const Hdf5Id creation = dataset_properties(path_, dataset);
  make_parent_groups(handle_, path_, dataset);
  Hdf5Id id(H5Dcreate2(handle_, dataset.c_str(), file_type(type), space, H5P_DEFAULT, creation, H5P_DEFAULT), H5Dclose,
            path_, dataset, "can't create dataset");
  if (product(shape) > 0 && H5Dwrite(id, memory_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0)
    fail_hdf5(path_, dataset, "can't write");
  id.close_written(path_, dataset, "can't write");
}

void Hdf5File::create_appendable(const std::string& dataset, ElementType type, int64_t chunk_elements) {
  LAMINA_CHECK(chunk_elements > 0, "chunk of {} elements", chunk_elements);
  const Hdf5Lock lock;
  const hsize_t none = 0;
  const hsize_t unlimited = H5S_UNLIMITED;
  const auto chunk = static_cast<hsize_t>(chunk_elements);
  const Hdf5Id space(H5Screate_simple(1, &none, &unlimited), H5Sclose, path_, dataset, "can't make a data space");
  const Hdf5Id creation = dataset_properties(path_, dataset);
  if (H5Pset_chunk(creation, 1, &chunk) < 0) fail_hdf5(path_, dataset, "can't set up");
  make_parent_groups(handle_, path_, dataset);
  Hdf5Id id(H5Dcreate2(handle_, dataset.c_str(), file_type(type), space, H5P_DEFAULT, creation, H5P_DEFAULT), H5Dclose,
            path_, dataset, "can't create dataset");
  id.close_written(path_, dataset, "can't create dataset");
}

void Hdf5File::append(const std::string& dataset, const void* data, int64_t count) {
  LAMINA_CHECK(count >= 0, "count {}", count);
  if (count == 0) return;
  const ElementType type = info(dataset).type;
  const Hdf5Lock lock;
  Hdf5Id id = open_dataset(handle_, path_, dataset);
  hsize_t begin = 0;
  {
    const Hdf5Id space(H5Dget_space(id), H5Sclose, path_, dataset, "can't read the shape");
    LAMINA_CHECK(H5Sget_simple_extent_ndims(space) == 1, "{}: {} isn't one-dimensional", path_.string(), dataset);
    H5Sget_simple_extent_dims(space, &begin, nullptr);
  }
  const auto length = static_cast<hsize_t>(count);
  const hsize_t end = begin + length;
  if (H5Dset_extent(id, &end) < 0) fail_hdf5(path_, dataset, "can't append");
  const Hdf5Id target(H5Dget_space(id), H5Sclose, path_, dataset, "can't read the shape");
  const Hdf5Id source(H5Screate_simple(1, &length, nullptr), H5Sclose, path_, dataset, "can't make a data space");
  if (H5Sselect_hyperslab(target, H5S_SELECT_SET, &begin, nullptr, &length, nullptr) < 0 ||
      H5Dwrite(id, memory_type(type), source, target, H5P_DEFAULT, data) < 0)
    fail_hdf5(path_, dataset, "can't append");
  id.close_written(path_, dataset, "can't append");
}

void Hdf5File::write_virtual(const std::string& dataset, ElementType type, std::span<const int64_t> shape,
                             std::span<const VirtualPiece> pieces) {
  LAMINA_CHECK(!shape.empty(), "{}: a virtual dataset has at least one axis", dataset);
  const Hdf5Lock lock;
  const Hdf5Id space = make_space(shape, path_, dataset);
  const Hdf5Id creation = dataset_properties(path_, dataset);
  for (const VirtualPiece& piece : pieces) {
    LAMINA_CHECK(0 <= piece.begin && piece.begin <= piece.end && piece.end <= product(shape), "{}: [{}, {}) of {}",
                 dataset, piece.begin, piece.end, product(shape));
    LAMINA_CHECK(piece.source_begin >= 0 && piece.source_begin + (piece.end - piece.begin) <= piece.source_size,
                 "{}: {} elements from {} of {}", dataset, piece.end - piece.begin, piece.source_begin,
                 piece.source_size);
    const auto source_size = static_cast<hsize_t>(piece.source_size);
    const Hdf5Id source(H5Screate_simple(1, &source_size, nullptr), H5Sclose, path_, dataset,
                        "can't make a data space");
    auto source_begin = static_cast<hsize_t>(piece.source_begin);
    // One mapping per box: mappings of irregular selections are slower to read and not understood everywhere.
    for (const Box& box : flat_range_to_boxes(shape, piece.begin, piece.end)) {
      const auto length = static_cast<hsize_t>(box.num_elements);
      if (H5Sselect_hyperslab(space, H5S_SELECT_SET, box.start.data(), nullptr, box.count.data(), nullptr) < 0 ||
          H5Sselect_hyperslab(source, H5S_SELECT_SET, &source_begin, nullptr, &length, nullptr) < 0 ||
          H5Pset_virtual(creation, space, piece.file.c_str(), piece.dataset.c_str(), source) < 0)
        fail_hdf5(path_, dataset, "can't map a part");
      source_begin += length;
    }
  }
  H5Sselect_all(space);
  make_parent_groups(handle_, path_, dataset);
  Hdf5Id id(H5Dcreate2(handle_, dataset.c_str(), file_type(type), space, H5P_DEFAULT, creation, H5P_DEFAULT), H5Dclose,
            path_, dataset, "can't create virtual dataset");
  id.close_written(path_, dataset, "can't create virtual dataset");
}

void Hdf5File::read(const std::string& dataset, ElementType type, int64_t begin, int64_t count, void* out) const {
  const Hdf5Lock lock;
  const Hdf5Id id = open_dataset(handle_, path_, dataset);
  check_virtual_sources(id, path_, dataset);
  const Hdf5Id space(H5Dget_space(id), H5Sclose, path_, dataset, "can't read the shape");
  const std::vector<int64_t> shape = shape_of(space);
  if (begin < 0 || count < 0 || begin > product(shape) - count)
    throw Error("{}: {}: found {} elements, expected at least {}", path_.string(), dataset, product(shape),
                begin + count);
  if (count == 0) return;
  const auto length = static_cast<hsize_t>(count);
  const Hdf5Id target(H5Screate_simple(1, &length, nullptr), H5Sclose, path_, dataset, "can't make a data space");
  if (!shape.empty() && count < product(shape)) {
    H5Sselect_none(space);
    // The union of the boxes is read in row-major order, which is the order of the flat range.
    for (const Box& box : flat_range_to_boxes(shape, begin, begin + count))
      if (H5Sselect_hyperslab(space, H5S_SELECT_OR, box.start.data(), nullptr, box.count.data(), nullptr) < 0)
        fail_hdf5(path_, dataset, "can't select a range");
  }
  if (H5Dread(id, memory_type(type), target, space, H5P_DEFAULT, out) < 0) fail_hdf5(path_, dataset, "can't read");
}

int64_t Hdf5File::contiguous_offset(const std::string& dataset) const {
  const Hdf5Lock lock;
  const Hdf5Id id = open_dataset(handle_, path_, dataset);
  const Hdf5Id properties(H5Dget_create_plist(id), H5Pclose, path_, dataset, "can't read the layout");
  if (H5Pget_layout(properties) != H5D_CONTIGUOUS) return -1;
  const haddr_t offset = H5Dget_offset(id);
  H5Eclear2(H5E_DEFAULT);
  return offset == HADDR_UNDEF ? -1 : static_cast<int64_t>(offset);
}

std::vector<int64_t> Hdf5File::chunk_offsets(const std::string& dataset) const {
  const Hdf5Lock lock;
  const std::string_view what = "can't read the chunk index";
  const Hdf5Id id = open_dataset(handle_, path_, dataset);
  const Hdf5Id properties(H5Dget_create_plist(id), H5Pclose, path_, dataset, what);
  hsize_t chunk_elements = 0;
  if (H5Pget_layout(properties) != H5D_CHUNKED || H5Pget_chunk(properties, 1, &chunk_elements) != 1 ||
      H5Pget_nfilters(properties) != 0)
    throw Error("{}: {}: expected a one-dimensional dataset in chunks, without filters", path_.string(), dataset);
  const Hdf5Id space(H5Dget_space(id), H5Sclose, path_, dataset, what);
  const auto count = static_cast<hsize_t>(product(shape_of(space)));
  std::vector<int64_t> offsets;
  for (hsize_t begin = 0; begin < count; begin += chunk_elements) {
    unsigned filters = 0;
    haddr_t offset = HADDR_UNDEF;
    hsize_t size = 0;
    if (H5Dget_chunk_info_by_coord(id, &begin, &filters, &offset, &size) < 0) fail_hdf5(path_, dataset, what);
    if (offset == HADDR_UNDEF)
      throw Error("{}: {}: the chunk of element {} was never written", path_.string(), dataset, begin);
    offsets.push_back(static_cast<int64_t>(offset));
  }
  return offsets;
}

}  // namespace lamina::io
