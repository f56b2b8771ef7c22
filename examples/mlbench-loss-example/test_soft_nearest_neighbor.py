from mlbench.contract import assert_loss


def test_contract() -> None:
    assert_loss("soft_nearest_neighbor")
