"""STAC of mosaics and maps: valid with their extensions, whole, and read by others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pystac
import pystac.validation
import pytest
import rustac
from support.mosaicked import CHAIN, classified_run, config, embed_crops, planned_run
from support.stac_schemas import use_local_schemas

from infer.contract import Run
from preproc.catalogue.static import read_static
from preproc.mosaic.stage import StitchStage
from preproc.run.stage import run_stage


@pytest.fixture(scope="module", params=["int8", "float32"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    use_local_schemas()
    extra = f'{CHAIN}[stitch]\nsheet = 128\ndtype = "{request.param}"\n'
    run, _ = classified_run(tmp_path_factory.mktemp("stac") / "run", extra=extra)
    return run


def documents(run: Run) -> dict[str, dict[str, Any]]:
    read = {path.name: json.loads(path.read_text()) for path in [*run.mosaic.glob("*.json"), *run.map.glob("*.json")]}
    return {name: content for name, content in read.items() if content.get("type") in ("Feature", "Collection")}


def test_every_item_and_collection_is_valid_with_its_extensions(made: Run) -> None:
    found = documents(made)
    assert {"collection.json", "embeddings_31N.json", "model.json", "map_31N.json"} <= set(found)
    for name, content in found.items():
        checked = pystac.validation.validate_dict(content)
        assert len(checked) == 1 + len(content["stac_extensions"]), name


def test_a_wrong_field_is_found(made: Run) -> None:
    """The schemas of these tests can fail."""
    item = documents(made)["embeddings_31N.json"]
    wrong: list[dict[str, Any]] = []
    for key, value in (("emb:what", 1), ("emb:dimensions", 6), ("proj:code", 32631), ("processing:software", "smalti")):
        wrong.append({**item, "properties": {**item["properties"], key: value}})
    model = documents(made)["model.json"]
    wrong.append({**model, "properties": {k: v for k, v in model["properties"].items() if k != "mlm:output"}})
    for content in wrong:
        with pytest.raises(pystac.errors.STACValidationError):
            pystac.validation.validate_dict(content)


def test_collection_items_and_model_are_linked_and_are_there(made: Run) -> None:
    collection = pystac.Collection.from_file(made.mosaic / "collection.json")
    (item,) = collection.get_items()
    assert item.collection_id == collection.id
    for one in (collection, item):
        (link,) = one.get_links("emb:encoder_model")
        model = pystac.Item.from_file(str(link.get_absolute_href()))
        assert model.properties["mlm:name"] == "demo"
        assert model.properties["mlm:output"][0]["result"]["shape"] == [-1, 6]
        assert model.assets["weights"].href == "urn:sha256:" + "ab" * 32
        assert model.properties["license"] == "MIT"
    (source,) = collection.get_links("emb:source-data")
    assert source.href.startswith("https://planetarycomputer")
    quantised = "emb:quantization_method" in item.properties
    assert {"data", "embeddings"} == set(item.assets["embeddings"].roles or [])
    assert not [
        key for key, asset in item.assets.items() if "embeddings" in (asset.roles or []) and key != "embeddings"
    ]
    assert quantised == (item.assets["embeddings"].extra_fields["raster:bands"][0]["data_type"] == "int8")


def test_the_table_of_items_is_read_by_rustac_and_by_smalti_itself(made: Run) -> None:
    path = made.mosaic / "items.parquet"
    found = rustac.read_sync(str(path))
    features = found["features"] if found.get("type") == "FeatureCollection" else [found]
    item = json.loads((made.mosaic / "embeddings_31N.json").read_text())
    assert [entry["id"] for entry in features] == [item["id"]]
    (again, _) = read_static(str(path))[0]
    assert again["id"] == item["id"]
    assert again["assets"]["observations"]["href"] == item["assets"]["observations"]["href"]


def test_a_published_model_is_named_by_its_address_and_cited(tmp_path: Path) -> None:
    use_local_schemas()
    run = planned_run(tmp_path / "run", [(32631, 0, 0), (32632, 0, 0)])
    stated = {"data_source": "mpc", "normalisation": "mpc"}
    model = {"name": "tessera-v2-small", "label": "tessera-v2-small", "trained": True, "family": "v2-student", **stated}
    embed_crops(run, model=model)
    run_stage(StitchStage(), run, config(run))
    item = documents(run)["model.json"]
    assert pystac.validation.validate_dict(item)
    assert item["assets"]["weights"]["href"].endswith("TESSERA-V-2.0-2B-S/resolve/main/ckpt/student_small.pt")
    assert item["properties"]["sci:citation"].startswith("TESSERA v2, arXiv:2607.03949")
    assert item["properties"]["mlm:total_parameters"] == 7_110_000
    assert len(rustac.read_sync(str(run.mosaic / "items.parquet"))["features"]) == 2
