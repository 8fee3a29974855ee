"""huggingface_hub's own tests of downloading, unchanged, with `serve` in place of the Hub.

They come from its source distribution. `hub_tests` has what that leaves out, and the repos that the tests read.
"""

import json
import os
import shutil
import unittest
from xml.etree import ElementTree

from harness import HERE, TOOLS, finish
from serving import Served, ServeScenario

TESTS, PYTHON = os.environ.get("HUB_TESTS"), os.environ.get("PYTHON_HUB_TESTS")

SELECTED = [
    "test_cache_layout.py",
    "test_cache_no_symlinks.py",
    "test_file_download.py",
    "test_kernels.py",
    "test_snapshot_download.py",
    "test_utils_cache.py",
    # The rest of these modules needs no Hub, or is about what it does beyond downloads.
    "test_hf_api.py::TestHfApiAuthCheck",
    "test_hf_api.py::TestHfApiListRepoTree",
    "test_hf_api.py::TestHfApiPublicProduction",
    "test_hf_api.py::TestHfApiRepoFileExists",
    "test_hf_api.py::TestHfApiVerifyChecksums",
    "test_hf_api.py::TestListGitRefs",
    "test_hf_file_system.py::TestHfFileSystemRepositoryRO",
    "test_hf_file_system.py::TestHfFileSystemRepositoryRW",
    "test_hf_file_system.py::test_exists_after_repo_creation",
]
# The number of tests that are left in 2.4.0.
MINIMUM = 149
# Patterns of `module::class::test`, by the reason why these tests say nothing about `serve`.
DESELECTED = {
    "They ask nothing of the Hub.": [
        "test_cache_no_symlinks.py::*::test_are_symlinks_supported_*",
        "test_file_download.py::TestCreateSymlink::*",
        "test_file_download.py::TestDiskUsageWarning::*",
        "test_file_download.py::TestHfHubDownloadRelativePaths::*",
        "test_file_download.py::TestHttpGet::*",
        "test_file_download.py::TestNormalizeEtag::test_*_reference",
        "test_file_download.py::test_download_without_head_content_length",
        "test_hf_api.py::TestHfApiPublicProduction::test_is_emission_within_threshold",
        "test_hf_api.py::TestHfApiPublicProduction::test_model_info_corrupted_model_index",
        "test_hf_api.py::TestHfApiPublicProduction::test_space_runtime_hardware_none",
        "test_snapshot_download.py::test_*",
        "test_utils_cache.py::TestDelete*",
        "test_utils_cache.py::TestIgnoredCacheFiles::*",
        "test_utils_cache.py::TestMissingCacheUtils::*",
        "test_utils_cache.py::TestStringFormatters::*",
        "test_utils_cache.py::TestTryDeletePath::*",
    ],
    "They write to the Hub.": [
        "test_hf_file_system.py::TestHfFileSystemRepositoryRW::test_append_*",
        "test_hf_file_system.py::TestHfFileSystemRepositoryRW::test_copy_*",
        "test_hf_file_system.py::TestHfFileSystemRepositoryRW::test_remove_*",
        "test_hf_file_system.py::TestHfFileSystemRepositoryRW::test_write_*",
        "test_kernels.py::test_create_kernel",
        "test_kernels.py::test_upload_to_kernel",
    ],
    "Private and gated repos: the Hub tells readers apart by their tokens.": [
        "test_file_download.py::TestCachedDownload::test_private_repo_and_file_cached_locally",
        "test_file_download.py::TestStagingDownload::*",
        "test_hf_api.py::TestHfApiAuthCheck::test_auth_check_gated_repo",
        "test_hf_api.py::TestHfApiRepoFileExists::*",
        "test_snapshot_download.py::TestSnapshotDownload::test_download_private_model",
    ],
    "Xet": [
        "test_hf_api.py::TestHfApiListRepoTree::test_list_tree_with_xethash",
        "test_hf_file_system.py::TestHfFileSystemRepositoryRO::test_get_file_with_xet",
        "test_snapshot_download.py::TestSnapshotDownload::test_xet_file_skips_per_file_head_call",
    ],
    "Hashes and sizes of the real contents": [
        "test_file_download.py::TestNormalizeEtag::test_resolve_endpoint_*",
        "test_utils_cache.py::TestValidCacheUtils::*",
    ],
    "Redirects: within the Hub, to its CDN, from old names of repos": [
        "test_file_download.py::TestCachedDownload::test_download_from_a_renamed_repo_with_hf_hub_download",
        "test_file_download.py::TestCachedDownload::test_get_hf_file_metadata_from_a_lfs_file",
        "test_file_download.py::TestCachedDownload::test_hf_hub_download_with_user_agent",
    ],
    "`serve` lets clients read files of more than 50 GB.": [
        "test_file_download.py::TestExtraLargeFileDownloadPaths::*",
    ],
    "`serve` does not list or search all repos.": [
        "test_hf_api.py::TestHfApiPublicProduction::test_*filter_*",
        "test_hf_api.py::TestHfApiPublicProduction::test_list_datasets_*",
        "test_hf_api.py::TestHfApiPublicProduction::test_list_models*",
        "test_hf_api.py::TestHfApiPublicProduction::test_list_spaces_*",
        "test_hf_api.py::TestHfApiPublicProduction::test_search_spaces",
    ],
    "Facts that only the Hub has: history, scans, hardware, counts, data derived from files": [
        "test_hf_api.py::TestHfApiListRepoTree::test_list_tree_with_expand",
        "test_hf_api.py::TestHfApiPublicProduction::test_*_expand_*",
        "test_hf_api.py::TestHfApiPublicProduction::test_*leaderboard*",
        "test_hf_api.py::TestHfApiPublicProduction::test_get_sharded_safetensors_metadata",
        "test_hf_api.py::TestHfApiPublicProduction::test_inference_provider_*",
        "test_hf_api.py::TestHfApiPublicProduction::test_list_dataset_parquet_files",
        "test_hf_api.py::TestHfApiPublicProduction::test_model_info",
        "test_hf_api.py::TestHfApiPublicProduction::test_model_info_with_security",
        "test_hf_api.py::TestHfApiPublicProduction::test_model_info_with_widget_data",
        "test_hf_api.py::TestHfApiPublicProduction::test_space_info",
    ],
}


@unittest.skipUnless(TESTS, "huggingface_hub's own tests could not be downloaded")
class HubTests(ServeScenario):
    def test_the_tests_of_huggingface_hub_itself(self):
        bucket = self.bucket(TOOLS.s3s_fs)
        served = Served(self.machine("server", bucket), "--refresh", "0s")
        publisher, client = self.machine("publisher", bucket), self.client_of(served, "client")
        tests = self.root / "hub" / "tests"
        shutil.copytree(TESTS, tests)
        (tests / "__init__.py").touch()
        shutil.copy(HERE / "hub_tests" / "conftest.py", tests)
        report = self.root / "report.xml"
        command = [PYTHON, "-m", "pytest", "-c", os.devnull, "-p", "no:cacheprovider", "--tb=short"]
        command += ["--rootdir", tests.parent, "--basetemp", self.root / "pytest", "--junitxml", report]
        process = client.start(
            *command,
            *[tests / name for name in SELECTED],
            PUBLISHER=json.dumps(publisher.env),
            HF_CACHE_SYNC_BIN=TOOLS.ours,
            DESELECTED=json.dumps([pattern for patterns in DESELECTED.values() for pattern in patterns]),
            PYTHONPATH=os.pathsep.join([client.env["PYTHONPATH"], str(HERE), str(HERE / "hub_tests")]),
        )
        finish(process)
        # Tests that are skipped have an element that says so.
        passed = [case for case in ElementTree.parse(report).iter("testcase") if len(case) == 0]
        self.assertGreaterEqual(len(passed), MINIMUM)
        served.stop()
