# SPDX-License-Identifier: MIT
# Toolchain: compiles for aarch64 on another machine, with the compiler, emulator and libraries of
# `deploy/local/install --for arm`. Tests run under the emulator.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES PGPT_LOCAL)
if(NOT PGPT_LOCAL)
  set(PGPT_LOCAL "${CMAKE_CURRENT_LIST_DIR}/../.local")
endif()
get_filename_component(sysroot "${PGPT_LOCAL}/aarch64" REALPATH)
set(libraries "${sysroot}/usr/lib/aarch64-linux-gnu")
set(CMAKE_FIND_ROOT_PATH "${sysroot}" /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(ENV{PKG_CONFIG_LIBDIR} "${libraries}/pkgconfig")
set(ENV{PKG_CONFIG_SYSROOT_DIR} "${sysroot}")
set(CMAKE_CROSSCOMPILING_EMULATOR "qemu-aarch64;-L;/usr/aarch64-linux-gnu")
