# SPDX-License-Identifier: MIT
pgpt_unit_test(isa pgpt_cpu)
pgpt_unit_test(ops pgpt_cpu)
pgpt_unit_test(product pgpt_cpu)
pgpt_unit_test(engine_rules pgpt_base m)
pgpt_unit_test(engine pgpt_engine PkgConfig::JANSSON m)
pgpt_unit_test(engine_invariance pgpt_engine)

# Hashes of what the engine says, to be compared between machines (tests/run arm).
add_executable(bits kernels/bits.c)
set_target_properties(bits PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
target_compile_definitions(bits PRIVATE PGPT_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
target_link_libraries(bits PRIVATE pgpt_engine)

# Engines on several devices at once.
add_executable(test_devices kernels/test_devices.c)
set_target_properties(test_devices PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
target_link_libraries(test_devices PRIVATE pgpt_engine)
add_test(NAME engines_of_one_process COMMAND test_devices "${CMAKE_SOURCE_DIR}/models/prometheus-mini" int8 cpu cpu)

# Our products against OpenBLAS and oneDNN, where their development files are present.
find_library(OPENBLAS_LIBRARY openblas)
find_library(DNNL_LIBRARY dnnl)
find_path(DNNL_INCLUDE oneapi/dnnl/dnnl.h)
if(OPENBLAS_LIBRARY AND DNNL_LIBRARY AND DNNL_INCLUDE)
  add_executable(bench_product EXCLUDE_FROM_ALL kernels/bench_product.c)
  set_target_properties(bench_product PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
  target_link_libraries(bench_product PRIVATE pgpt_cpu ${OPENBLAS_LIBRARY} ${DNNL_LIBRARY})
endif()

# To be run on a machine with a GPU: the CUDA choice kernels against a plain host version; their times; a kernel
# that hangs; a library that breaks the device of the program it is preloaded into.
if(PGPT_CUDA)
  foreach(program test_choose time_choose test_hang)
    add_executable(${program} kernels/${program}.cu)
    set_target_properties(${program} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
    target_link_libraries(${program} PRIVATE pgpt_engine)
  endforeach()
  add_library(break_device MODULE kernels/break_device.cu)
  set_target_properties(break_device PROPERTIES LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/tests")
endif()
