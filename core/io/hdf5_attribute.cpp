#include <hdf5.h>

#include <type_traits>
#include <utility>

#include "core/base/error.h"
#include "core/io/hdf5.h"
#include "core/io/hdf5_detail.h"

namespace lamina::io {

namespace fs = std::filesystem;

namespace {

void write_attribute_value(hid_t file, const fs::path& path, const std::string& object, const std::string& name,
                           hid_t file_type, hid_t memory_type, const void* value) {
  const std::string what = fmt::format("can't write attribute {}", name);
  const Hdf5Id owner(H5Oopen(file, object.c_str(), H5P_DEFAULT), H5Oclose, path, object, what);
  if (H5Aexists(owner, name.c_str()) > 0 && H5Adelete(owner, name.c_str()) < 0) fail_hdf5(path, object, what);
  const Hdf5Id space(H5Screate(H5S_SCALAR), H5Sclose, path, object, what);
  Hdf5Id attribute(H5Acreate2(owner, name.c_str(), file_type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose, path, object,
                   what);
  if (H5Awrite(attribute, memory_type, value) < 0) fail_hdf5(path, object, what);
  attribute.close_written(path, object, what);
}

Hdf5Id string_type(size_t length, const fs::path& path) {
  Hdf5Id type(H5Tcopy(H5T_C_S1), H5Tclose, path, "", "can't make a string type");
  if (H5Tset_size(type, length) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0)
    fail_hdf5(path, "", "can't make a string type");
  return type;
}

struct OpenAttribute {
  Hdf5Id owner, attribute, type;
};

OpenAttribute open_attribute(hid_t file, const fs::path& path, const std::string& object, const std::string& name) {
  const std::string what = fmt::format("can't read attribute {}", name);
  Hdf5Id owner(H5Oopen(file, object.c_str(), H5P_DEFAULT), H5Oclose, path, object, what);
  if (H5Aexists(owner, name.c_str()) == 0) throw Error("{}: {}: no attribute {}", path.string(), object, name);
  Hdf5Id attribute(H5Aopen(owner, name.c_str(), H5P_DEFAULT), H5Aclose, path, object, what);
  Hdf5Id type(H5Aget_type(attribute), H5Tclose, path, object, what);
  const Hdf5Id space(H5Aget_space(attribute), H5Sclose, path, object, what);
  if (H5Sget_simple_extent_npoints(space) != 1)
    throw Error("{}: {}: attribute {} has {} values, expected one", path.string(), object, name,
                H5Sget_simple_extent_npoints(space));
  return {std::move(owner), std::move(attribute), std::move(type)};
}

template <class T>
T read_number(hid_t file, const fs::path& path, const std::string& object, const std::string& name, hid_t memory_type) {
  const OpenAttribute open = open_attribute(file, path, object, name);
  const H5T_class_t kind = H5Tget_class(open.type);
  const bool fits = kind == H5T_INTEGER || (std::is_same_v<T, double> && kind == H5T_FLOAT);
  if (!fits)
    throw Error("{}: {}: attribute {} isn't {}", path.string(), object, name,
                std::is_same_v<T, double> ? "a number" : "an integer");
  T value{};
  if (H5Aread(open.attribute, memory_type, &value) < 0)
    fail_hdf5(path, object, fmt::format("can't read attribute {}", name));
  return value;
}

}  // namespace

void Hdf5File::write_attribute(const std::string& object, const std::string& name, const std::string& value) {
  LAMINA_CHECK(value.find('\0') == std::string::npos, "attribute {} with a zero byte", name);
  const Hdf5Lock lock;
  const Hdf5Id type = string_type(H5T_VARIABLE, path_);
  const char* text = value.c_str();
  write_attribute_value(handle_, path_, object, name, type, type, &text);
}

void Hdf5File::write_attribute(const std::string& object, const std::string& name, int64_t value) {
  const Hdf5Lock lock;
  write_attribute_value(handle_, path_, object, name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

void Hdf5File::write_attribute(const std::string& object, const std::string& name, double value) {
  const Hdf5Lock lock;
  write_attribute_value(handle_, path_, object, name, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value);
}

bool Hdf5File::has_attribute(const std::string& object, const std::string& name) const {
  const Hdf5Lock lock;
  const Hdf5Id owner(H5Oopen(handle_, object.c_str(), H5P_DEFAULT), H5Oclose, path_, object, "can't open");
  const htri_t exists = H5Aexists(owner, name.c_str());
  if (exists < 0) fail_hdf5(path_, object, fmt::format("can't look up attribute {}", name));
  return exists > 0;
}

std::string Hdf5File::read_string(const std::string& object, const std::string& name) const {
  const Hdf5Lock lock;
  const OpenAttribute open = open_attribute(handle_, path_, object, name);
  if (H5Tget_class(open.type) != H5T_STRING)
    throw Error("{}: {}: attribute {} isn't a text", path_.string(), object, name);
  const std::string what = fmt::format("can't read attribute {}", name);
  if (H5Tis_variable_str(open.type) > 0) {
    const Hdf5Id type = string_type(H5T_VARIABLE, path_);
    H5Tset_cset(type, H5Tget_cset(open.type));
    char* text = nullptr;
    if (H5Aread(open.attribute, type, &text) < 0) fail_hdf5(path_, object, what);
    std::string value = text == nullptr ? "" : text;
    H5free_memory(text);
    return value;
  }
  std::string value(H5Tget_size(open.type), '\0');
  if (H5Aread(open.attribute, open.type, value.data()) < 0) fail_hdf5(path_, object, what);
  return value.substr(0, value.find('\0'));
}

int64_t Hdf5File::read_int(const std::string& object, const std::string& name) const {
  const Hdf5Lock lock;
  return read_number<int64_t>(handle_, path_, object, name, H5T_NATIVE_INT64);
}

double Hdf5File::read_double(const std::string& object, const std::string& name) const {
  const Hdf5Lock lock;
  return read_number<double>(handle_, path_, object, name, H5T_NATIVE_DOUBLE);
}

}  // namespace lamina::io
