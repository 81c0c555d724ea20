# SPDX-License-Identifier: MIT
# pgpt_rdkafka: the pinned librdkafka that deploy/local/install builds into PGPT_LOCAL, linked statically.
set(rdkafka_root "${PGPT_LOCAL}/librdkafka")
set(rdkafka_version 2.15.1)
if(NOT EXISTS "${rdkafka_root}/lib/librdkafka.a")
  message(FATAL_ERROR "librdkafka ${rdkafka_version} is not in ${rdkafka_root}: run deploy/local/install, "
                      "or configure with -DPGPT_SERVICE=OFF to build the engine alone")
endif()
file(STRINGS "${rdkafka_root}/lib/pkgconfig/rdkafka.pc" rdkafka_pc REGEX "^(Version|Requires.private):")
if(NOT rdkafka_pc MATCHES "Version: ${rdkafka_version}")
  message(FATAL_ERROR "${rdkafka_root} holds another version than librdkafka ${rdkafka_version}: "
                      "remove it and run deploy/local/install")
endif()
pkg_check_modules(RDKAFKA_NEEDS REQUIRED IMPORTED_TARGET libcrypto libssl libzstd liblz4)
add_library(pgpt_rdkafka INTERFACE)
target_include_directories(pgpt_rdkafka SYSTEM INTERFACE "${rdkafka_root}/include")
target_link_libraries(pgpt_rdkafka INTERFACE "${rdkafka_root}/lib/librdkafka.a" PkgConfig::RDKAFKA_NEEDS
                                             Threads::Threads dl m rt)
if(rdkafka_pc MATCHES "zlib")
  target_link_libraries(pgpt_rdkafka INTERFACE z)
endif()
