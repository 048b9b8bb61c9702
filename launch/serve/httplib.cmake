# cpp-httplib 0.11 or newer, as the target lamina_httplib. Distributions compile it with options that change its classes, so its
# pkg-config file, which says them, must be that of the header.
pkg_check_modules(HTTPLIB IMPORTED_TARGET cpp-httplib)
if(NOT HTTPLIB_FOUND)
  message(FATAL_ERROR "cpp-httplib was not found (no cpp-httplib.pc), expected 0.11 or newer: install libcpp-httplib-dev, or name the "
                      "folder of that file in PKG_CONFIG_PATH")
endif()
find_path(HTTPLIB_INCLUDE_DIR httplib.h HINTS ${HTTPLIB_INCLUDEDIR} NO_CACHE)
set(header_version "")
if(HTTPLIB_INCLUDE_DIR)
  file(STRINGS ${HTTPLIB_INCLUDE_DIR}/httplib.h header_version REGEX "define CPPHTTPLIB_VERSION \"")
  string(REGEX REPLACE ".*\"(.*)\".*" "\\1" header_version "${header_version}")
endif()
if(NOT header_version VERSION_EQUAL HTTPLIB_VERSION)
  message(FATAL_ERROR "${HTTPLIB_INCLUDE_DIR}/httplib.h is cpp-httplib '${header_version}', its library ${HTTPLIB_VERSION}: "
                      "expected the same")
endif()
if(HTTPLIB_VERSION VERSION_LESS 0.11)
  message(FATAL_ERROR "${HTTPLIB_INCLUDE_DIR}/httplib.h is cpp-httplib ${HTTPLIB_VERSION}, expected 0.11 or newer")
endif()
message(STATUS "cpp-httplib ${HTTPLIB_VERSION}: ${HTTPLIB_LINK_LIBRARIES}")
add_library(lamina_httplib INTERFACE)
# Newer headers call OpenSSL from inline functions, so what the library itself needs is linked here too.
target_link_libraries(lamina_httplib INTERFACE PkgConfig::HTTPLIB ${HTTPLIB_STATIC_LIBRARIES})
