# oneDNN 2.6 or newer, as the target lamina_dnnl. Its header and library are looked for here: the CMake files that come with it ask for
# whatever it was built with (OpenCL on Debian), none of which a program on the CPU needs.
find_path(DNNL_INCLUDE_DIR oneapi/dnnl/dnnl.hpp)
find_library(DNNL_LIBRARY dnnl)
if(NOT DNNL_INCLUDE_DIR OR NOT DNNL_LIBRARY)
  message(FATAL_ERROR "oneDNN was not found (header: ${DNNL_INCLUDE_DIR}, library: ${DNNL_LIBRARY}), expected 2.6 or newer: install "
                      "libdnnl-dev, or name its folder in CMAKE_PREFIX_PATH")
endif()
file(STRINGS ${DNNL_INCLUDE_DIR}/oneapi/dnnl/dnnl_version.h lines REGEX "define DNNL_VERSION_(MAJOR|MINOR|PATCH) ")
string(REGEX REPLACE "[^0-9;]" "" lines "${lines}")
string(REPLACE ";" "." DNNL_VERSION "${lines}")
if(DNNL_VERSION VERSION_LESS 2.6)
  message(FATAL_ERROR "${DNNL_LIBRARY} is oneDNN ${DNNL_VERSION}, expected 2.6 or newer")
endif()
# Its threads must be those of run.num_threads, which are OpenMP's.
file(STRINGS ${DNNL_INCLUDE_DIR}/oneapi/dnnl/dnnl_config.h runtime REGEX "define DNNL_CPU_THREADING_RUNTIME ")
if(NOT runtime MATCHES "DNNL_RUNTIME_OMP")
  message(FATAL_ERROR "${DNNL_LIBRARY} was built for other threads than OpenMP's (${runtime}), expected DNNL_RUNTIME_OMP")
endif()
message(STATUS "oneDNN ${DNNL_VERSION}: ${DNNL_LIBRARY}")
add_library(lamina_dnnl INTERFACE)
target_include_directories(lamina_dnnl SYSTEM INTERFACE ${DNNL_INCLUDE_DIR})
target_link_libraries(lamina_dnnl INTERFACE ${DNNL_LIBRARY})
